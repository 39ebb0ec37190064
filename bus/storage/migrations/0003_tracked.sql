-- Acks, queues, delays, requests, threads and replays. What 0002 shaped was never written to, and is shaped anew.
-- Times of deadlines are microseconds of the bus's clock (bus/clock.py); owner: a client, or queue:<name>.
DROP TABLE deliveries;
DROP TABLE scheduled;
DROP TABLE other_ids;
DROP TABLE dead_letters;

-- What an owner has not settled yet. state: 0 waiting, 1 leased, 2 resting (backing off, until it wakes).
-- due_key: when it began to wait plus 30 s for each priority class; the least goes first, ties by seq.
-- until: the end of the lease, or of the rest. attempt: leases begun. failures: those that count.
-- holder: who has the lease; of a socket's consumer with a name for the socket behind a slash.
-- ack_wait: how long a lease is, as the sender said; lease_wait: as the claim of the present one did, if it did.
CREATE TABLE deliveries (
    owner      TEXT    NOT NULL,
    seq        INTEGER NOT NULL,
    state      INTEGER NOT NULL,
    due_key    INTEGER NOT NULL,
    until      INTEGER,
    holder     TEXT,
    attempt    INTEGER NOT NULL,
    failures   INTEGER NOT NULL,
    ack_wait   INTEGER NOT NULL,
    leased_at  INTEGER,
    expires_at INTEGER,
    history    BLOB,
    lease_wait INTEGER,
    PRIMARY KEY (owner, seq)
) WITHOUT ROWID;
CREATE INDEX deliveries_by_rank ON deliveries (owner, state, due_key, seq);
CREATE INDEX deliveries_by_time ON deliveries (until) WHERE until IS NOT NULL;
CREATE INDEX deliveries_by_expiry ON deliveries (expires_at) WHERE expires_at IS NOT NULL;

-- How much an owner has open, and how much it may: kept with the rows above, so that nobody counts them.
-- capacity and on_full ('refuse' or 'dead_letter'): NULL means as the settings say.
CREATE TABLE backlogs (
    owner    TEXT PRIMARY KEY,
    waiting  INTEGER NOT NULL,
    leased   INTEGER NOT NULL,
    capacity INTEGER,
    on_full  TEXT
) WITHOUT ROWID;

-- What was settled in the last day, so that a repeated or late ack gets a true answer. outcome: 0 acked, 1 dead letter.
CREATE TABLE settled (
    seq        INTEGER NOT NULL,
    owner      TEXT    NOT NULL,
    outcome    INTEGER NOT NULL,
    attempt    INTEGER NOT NULL,
    consumer   TEXT    NOT NULL,
    settled_at INTEGER NOT NULL,
    PRIMARY KEY (seq, owner)
) WITHOUT ROWID;
CREATE INDEX settled_by_age ON settled (settled_at);

-- The whole message, why it could not be delivered to this owner, and the attempts: a JSON array.
CREATE TABLE dead_letters (
    id       TEXT    NOT NULL,
    owner    TEXT    NOT NULL,
    died_at  INTEGER NOT NULL,
    reason   TEXT    NOT NULL,
    detail   TEXT,
    attempts BLOB    NOT NULL,
    seq      INTEGER NOT NULL,
    kind     INTEGER NOT NULL,
    address  TEXT    NOT NULL,
    sender   TEXT    NOT NULL,
    type     TEXT    NOT NULL,
    stamp    INTEGER NOT NULL,
    flags    INTEGER NOT NULL,
    extras   BLOB    NOT NULL,
    payload  BLOB    NOT NULL,
    ack_wait INTEGER,
    PRIMARY KEY (id, owner)
) WITHOUT ROWID;
CREATE INDEX dead_letters_by_time ON dead_letters (died_at, id, owner);
CREATE INDEX dead_letters_by_owner ON dead_letters (owner, died_at);

-- Messages that enter the log when due_at comes; they keep the id that was given at the send. terms: JSON.
CREATE TABLE scheduled (
    id      TEXT PRIMARY KEY,
    due_at  INTEGER NOT NULL,
    kind    INTEGER NOT NULL,
    address TEXT    NOT NULL,
    sender  TEXT    NOT NULL,
    type    TEXT    NOT NULL,
    stamp   INTEGER NOT NULL,
    flags   INTEGER NOT NULL,
    extras  BLOB    NOT NULL,
    payload BLOB    NOT NULL,
    terms   BLOB    NOT NULL
) WITHOUT ROWID;
CREATE INDEX scheduled_by_due ON scheduled (due_at);

-- Ids that are not made of their seq: of messages that were scheduled or redriven. An id may have had several places.
CREATE TABLE other_ids (
    id  TEXT    NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (id, seq)
) WITHOUT ROWID;
CREATE INDEX other_ids_by_seq ON other_ids (seq);

-- Set for the key of a delayed send: what was answered had an id, and no seq.
ALTER TABLE idempotency ADD COLUMN id TEXT;
-- When a key was taken, by the bus's clock: its day is counted from then.
ALTER TABLE idempotency ADD COLUMN kept_at INTEGER;
UPDATE idempotency SET kept_at = stamp;
DROP INDEX idempotency_by_age;
CREATE INDEX idempotency_by_age ON idempotency (kept_at);

-- A question, and who may answer it: asked is a JSON array of names, NULL for anybody.
CREATE TABLE requests (
    seq            INTEGER PRIMARY KEY,
    asker          TEXT    NOT NULL,
    correlation_id TEXT    NOT NULL,
    asked          BLOB,
    asked_at       INTEGER NOT NULL
);
CREATE INDEX requests_by_correlation ON requests (asker, correlation_id, seq);
CREATE INDEX requests_by_age ON requests (asked_at);

CREATE TABLE replies (
    request INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    sender  TEXT    NOT NULL,
    PRIMARY KEY (request, seq)
) WITHOUT ROWID;

-- The messages of a thread, in order.
CREATE TABLE thread_messages (
    thread_id TEXT    NOT NULL,
    seq       INTEGER NOT NULL,
    PRIMARY KEY (thread_id, seq)
) WITHOUT ROWID;
CREATE INDEX thread_messages_by_seq ON thread_messages (seq);

-- Replays into an inbox, as far as they have come. status: running, done, cancelled. narrow: JSON of what is copied.
CREATE TABLE replays (
    id         TEXT PRIMARY KEY,
    recipient  TEXT    NOT NULL,
    first      INTEGER NOT NULL,
    upto       INTEGER NOT NULL,
    position   INTEGER NOT NULL,
    narrow     BLOB    NOT NULL,
    rate       REAL    NOT NULL,
    copied     INTEGER NOT NULL,
    status     TEXT    NOT NULL,
    created_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX replays_running ON replays (created_at) WHERE status = 'running';

-- Plain messages that were set aside to make room in an inbox: they are dead letters of it, and no longer in it.
CREATE TABLE set_aside (
    owner TEXT    NOT NULL,
    seq   INTEGER NOT NULL,
    PRIMARY KEY (owner, seq)
) WITHOUT ROWID;
