-- Retention: what becomes of messages with time. Times are microseconds of the bus's clock (bus/clock.py).
-- Two more bits in the flags of a message's row: 8, its expires_at is its own (the sender's ttl, or an extension) and no policy
-- touches it; 16, the policy of its type set it. Without either it is the default policy's, and not shown.
UPDATE messages SET flags = flags | 8 WHERE expires_at IS NOT NULL;
DROP INDEX messages_by_expiry;
-- What a policy set falls due in the order of seq, so only what is its own needs an index.
CREATE INDEX messages_by_expiry ON messages (expires_at) WHERE flags & 8;

-- ttl: NULL for ever, or, of an immediate one, until it is delivered. type: also $default, and records such as $archive.
-- origin: standard, setting, or admin.
CREATE TABLE policies (
    type       TEXT PRIMARY KEY,
    name       TEXT    NOT NULL,
    ttl        INTEGER,
    archive    INTEGER NOT NULL,
    origin     TEXT    NOT NULL,
    changed_at INTEGER NOT NULL
) WITHOUT ROWID;
-- Raised with each change of a policy: whoever writes messages reads them anew.
ALTER TABLE log_head ADD COLUMN policies INTEGER NOT NULL DEFAULT 0;

-- Whom a message that goes after its delivery has not reached yet: a row each. tracked: until it is settled, else until
-- the kept cursor has passed.
CREATE TABLE undelivered (
    tracked INTEGER NOT NULL,
    name    TEXT    NOT NULL,
    seq     INTEGER NOT NULL,
    born    INTEGER NOT NULL,
    PRIMARY KEY (tracked, name, seq)
) WITHOUT ROWID;
CREATE INDEX undelivered_by_seq ON undelivered (seq);

-- What expired before it reached somebody, by day; name: a client, or empty for what went to all.
CREATE TABLE expired (
    name    TEXT    NOT NULL,
    day     INTEGER NOT NULL,
    n       INTEGER NOT NULL,
    max_seq INTEGER NOT NULL,
    PRIMARY KEY (name, day)
) WITHOUT ROWID;

-- How much the sweep has removed, by the policy it went by (a type, or $default) and why (expired, delivered).
CREATE TABLE removed (
    policy   TEXT    NOT NULL,
    reason   TEXT    NOT NULL,
    n        INTEGER NOT NULL,
    archived INTEGER NOT NULL,
    bytes    INTEGER NOT NULL,
    PRIMARY KEY (policy, reason)
) WITHOUT ROWID;

-- Files of messages that were archived before they went. complete: all that is in it has left the log.
CREATE TABLE archives (
    number      INTEGER PRIMARY KEY,
    file        TEXT    NOT NULL UNIQUE,
    reason      TEXT    NOT NULL,
    messages    INTEGER NOT NULL,
    bytes       INTEGER NOT NULL,
    first_stamp INTEGER NOT NULL,
    last_stamp  INTEGER NOT NULL,
    made_at     INTEGER NOT NULL,
    complete    INTEGER NOT NULL
);

CREATE INDEX set_aside_by_seq ON set_aside (seq);
