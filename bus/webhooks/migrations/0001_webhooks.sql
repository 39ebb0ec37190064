-- Webhooks: endpoints, what is owed to them, and what became of each attempt. Times are microseconds of the bus's clock.

-- state: enabled, paused, disabled. sealed: the URL, the secrets and the headers, encrypted; key_id says with which key.
CREATE TABLE webhook_endpoints (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    state      TEXT    NOT NULL,
    reason     TEXT,
    since      INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    config     BLOB    NOT NULL,
    key_id     TEXT    NOT NULL,
    sealed     BLOB    NOT NULL
);

-- One row. version: of the endpoints, raised by each change, so that every process learns of it.
-- server: the one that was last told to have started.
CREATE TABLE webhook_state (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL,
    server  TEXT,
    budget  BLOB
);
INSERT INTO webhook_state VALUES (1, 0, NULL, NULL);

-- The processes of the server that runs: the last to leave is the one that says it has stopped.
CREATE TABLE webhook_processes (
    slot   INTEGER PRIMARY KEY,
    server TEXT NOT NULL
);

-- What decides when an endpoint may be sent to, and what it is owed. sequence: the last number given in ordered mode.
-- policy, replays: bus.webhooks.breaker.Lane; the second holds the rate of what is replayed.
CREATE TABLE webhook_lanes (
    endpoint      INTEGER PRIMARY KEY,
    pending       INTEGER NOT NULL DEFAULT 0,
    pending_bytes INTEGER NOT NULL DEFAULT 0,
    sequence      INTEGER NOT NULL DEFAULT 0,
    policy        BLOB,
    replays       BLOB
);
CREATE INDEX webhook_lanes_busy ON webhook_lanes (endpoint) WHERE pending > 0;

-- id: what the receiver sees as webhook-id. seq: the message's place in the log, if it is about one. data: JSON text.
CREATE TABLE webhook_events (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT    NOT NULL UNIQUE,
    name        TEXT    NOT NULL,
    occurred_at INTEGER NOT NULL,
    seq         INTEGER,
    data        BLOB    NOT NULL
);

-- An event that is due to an endpoint. state: 0 waiting, 1 leased, 2 behind another of its key, 3 done, 4 dead.
-- class: 0 fresh, 1 late (from the third attempt on), 2 replayed. attempts: begun; tried: of these, how many count.
-- stamp: the last webhook-timestamp, in Unix seconds. lapses: leases that ended with their process.
CREATE TABLE webhook_deliveries (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,
    endpoint    INTEGER NOT NULL,
    event       INTEGER NOT NULL,
    state       INTEGER NOT NULL,
    class       INTEGER NOT NULL DEFAULT 0,
    due_at      INTEGER NOT NULL,
    made_at     INTEGER NOT NULL,
    bytes       INTEGER NOT NULL,
    attempts    INTEGER NOT NULL DEFAULT 0,
    tried       INTEGER NOT NULL DEFAULT 0,
    lapses      INTEGER NOT NULL DEFAULT 0,
    stamp       INTEGER NOT NULL DEFAULT 0,
    order_key   TEXT,
    sequence    INTEGER,
    holder      INTEGER,
    token       TEXT,
    lease_until INTEGER,
    began_at    INTEGER,
    ended_at    INTEGER,
    cause       TEXT,
    replayed_at INTEGER
);
CREATE INDEX webhook_deliveries_waiting ON webhook_deliveries (endpoint, class, due_at, number) WHERE state = 0;
CREATE INDEX webhook_deliveries_leased ON webhook_deliveries (lease_until) WHERE state = 1;
CREATE INDEX webhook_deliveries_in_order ON webhook_deliveries (endpoint, order_key, sequence)
    WHERE order_key IS NOT NULL AND state < 3;
CREATE INDEX webhook_deliveries_of_endpoint ON webhook_deliveries (endpoint, number);
CREATE INDEX webhook_deliveries_of_event ON webhook_deliveries (event);
CREATE INDEX webhook_deliveries_dead ON webhook_deliveries (number) WHERE state = 4;
CREATE INDEX webhook_deliveries_ended ON webhook_deliveries (ended_at) WHERE state >= 3;

-- Every attempt that ended. outcome: the class of bus.webhooks.policy, or lease_expired. folded: how many deliveries went
-- with it, in one message to a chat.
CREATE TABLE webhook_attempts (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    delivery   INTEGER NOT NULL,
    endpoint   INTEGER NOT NULL,
    attempt    INTEGER NOT NULL,
    due_at     INTEGER NOT NULL,
    began_at   INTEGER NOT NULL,
    ended_at   INTEGER NOT NULL,
    outcome    TEXT    NOT NULL,
    status     INTEGER,
    detail     TEXT    NOT NULL,
    address    TEXT,
    dns_ms     REAL,
    connect_ms REAL,
    tls_ms     REAL,
    ttfb_ms    REAL,
    total_ms   REAL,
    bytes      INTEGER NOT NULL,
    folded     INTEGER NOT NULL,
    replay     INTEGER NOT NULL,
    process    TEXT    NOT NULL,
    excerpt    BLOB    NOT NULL
);
CREATE INDEX webhook_attempts_of_delivery ON webhook_attempts (delivery, number);
CREATE INDEX webhook_attempts_of_endpoint ON webhook_attempts (endpoint, ended_at);
CREATE INDEX webhook_attempts_ended ON webhook_attempts (ended_at);

-- Deliveries that are to be sent again, up to the number `upto`; `position` is how far it has come.
CREATE TABLE webhook_replays (
    id         TEXT PRIMARY KEY,
    choice     BLOB    NOT NULL,
    position   INTEGER NOT NULL,
    upto       INTEGER NOT NULL,
    matched    INTEGER NOT NULL,
    replayed   INTEGER NOT NULL,
    status     TEXT    NOT NULL,
    created_at INTEGER NOT NULL
);
