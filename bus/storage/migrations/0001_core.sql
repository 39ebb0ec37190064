-- The log, and what is known of its readers. Times are microseconds since 1970 UTC.

-- Facts about the log that have no better place.
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value ANY
) WITHOUT ROWID;

-- One row. seq only rises, in the transaction that writes the messages: commit order is seq order.
-- lost_through: the highest seq that a size cap or a clear took away, which is what makes a gap a gap.
CREATE TABLE log_head (
    one            INTEGER PRIMARY KEY CHECK (one = 1),
    seq            INTEGER NOT NULL,
    total_messages INTEGER NOT NULL,
    kept_bytes     INTEGER NOT NULL,
    lost_through   INTEGER NOT NULL
);

-- The lives of this log. A log restored from a copy begins a new one.
CREATE TABLE epochs (
    first_seq INTEGER NOT NULL,
    epoch     TEXT PRIMARY KEY
) WITHOUT ROWID;

-- kind: 0 client, 1 list, 2 all, 3 topic, 4 queue. flags: 1 requires_ack, 2 event. payload: the JSON text as it came.
-- extras: JSON text of the optional fields, ready to be appended.
CREATE TABLE messages (
    seq        INTEGER PRIMARY KEY,
    kind       INTEGER NOT NULL,
    address    TEXT    NOT NULL,
    sender     TEXT    NOT NULL,
    type       TEXT    NOT NULL,
    stamp      INTEGER NOT NULL,
    expires_at INTEGER,
    flags      INTEGER NOT NULL,
    extras     BLOB    NOT NULL,
    payload    BLOB    NOT NULL
);
CREATE INDEX messages_by_address ON messages (kind, address, seq);
CREATE INDEX messages_by_expiry ON messages (expires_at) WHERE expires_at IS NOT NULL;

-- The named recipients of lists; a message to one client needs no row here.
CREATE TABLE addressed (
    name TEXT    NOT NULL,
    seq  INTEGER NOT NULL,
    PRIMARY KEY (name, seq)
) WITHOUT ROWID;
CREATE INDEX addressed_by_seq ON addressed (seq);

-- A row is an inbox. known: it has connected or sent. cursor: what a push connection confirmed.
-- mark: the highest seq that was pushed to or fetched by the client; what is above it is waiting.
CREATE TABLE clients (
    name       TEXT PRIMARY KEY,
    known      INTEGER NOT NULL,
    cursor     INTEGER NOT NULL,
    mark       INTEGER NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL
) WITHOUT ROWID;

-- What was answered to a send that carried a key, so that its repeat gets the same answer.
CREATE TABLE idempotency (
    sender    TEXT    NOT NULL,
    key       TEXT    NOT NULL,
    body_hash BLOB    NOT NULL,
    seq       INTEGER NOT NULL,
    stamp     INTEGER NOT NULL,
    answer    BLOB    NOT NULL,
    PRIMARY KEY (sender, key)
) WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (stamp);
