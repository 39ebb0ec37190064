-- What the store keeps for itself on PostgreSQL, beside the core's tables.

-- The last transaction of each writer: after a lost answer to COMMIT, whether it was committed.
CREATE TABLE commits (
    writer TEXT   PRIMARY KEY,
    number INTEGER NOT NULL,
    at     INTEGER NOT NULL
) WITH (fillfactor = 50);

-- Of which cluster, timeline, database and table this log is: another one was restored from a copy, or promoted.
CREATE TABLE identity (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    told TEXT   NOT NULL
);

-- One row, written by each transaction: room beside it keeps its versions on its page.
ALTER TABLE log_head SET (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
ALTER TABLE clients SET (fillfactor = 70);
ALTER TABLE backlogs SET (fillfactor = 50);

-- Lists are found by `addressed`, and are too long for an index.
DROP INDEX messages_by_address;
CREATE INDEX messages_by_address ON messages (kind, address, seq) WHERE kind <> 1;
