-- What must be acked one by one: shaped with the log, so that no release has to rewrite a full one.

-- A row for each recipient (or queue) of a message that needs an ack. state: 0 waiting, 1 leased, 2 acked.
-- due_key: when it began to wait plus 30 s for each priority class; the least goes first, ties by seq.
CREATE TABLE deliveries (
    seq         INTEGER NOT NULL,
    owner       TEXT    NOT NULL,
    state       INTEGER NOT NULL,
    due_key     INTEGER NOT NULL,
    lease_until INTEGER,
    lease_token TEXT,
    attempt     INTEGER NOT NULL,
    PRIMARY KEY (seq, owner)
) WITHOUT ROWID;
CREATE INDEX deliveries_by_owner ON deliveries (owner, state, due_key, seq);
CREATE INDEX deliveries_by_lease ON deliveries (lease_until) WHERE lease_until IS NOT NULL;

-- Messages that enter the log later; they keep the id that was given at the send.
CREATE TABLE scheduled (
    id      TEXT PRIMARY KEY,
    due_at  INTEGER NOT NULL,
    kind    INTEGER NOT NULL,
    address TEXT    NOT NULL,
    sender  TEXT    NOT NULL,
    type    TEXT    NOT NULL,
    flags   INTEGER NOT NULL,
    extras  BLOB    NOT NULL,
    payload BLOB    NOT NULL
) WITHOUT ROWID;
CREATE INDEX scheduled_by_due ON scheduled (due_at);

-- Ids that are not made of their seq: scheduled and redriven messages.
CREATE TABLE other_ids (
    id  TEXT PRIMARY KEY,
    seq INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX other_ids_by_seq ON other_ids (seq);

-- The whole message, why it could not be delivered, and its attempts.
CREATE TABLE dead_letters (
    id       TEXT    NOT NULL,
    owner    TEXT    NOT NULL,
    died_at  INTEGER NOT NULL,
    reason   TEXT    NOT NULL,
    detail   TEXT,
    attempts BLOB    NOT NULL,
    message  BLOB    NOT NULL,
    PRIMARY KEY (id, owner)
) WITHOUT ROWID;
CREATE INDEX dead_letters_by_time ON dead_letters (died_at);
