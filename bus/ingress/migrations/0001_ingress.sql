-- Integrations: who may send webhooks to the bus, and what came of each. Times are microseconds of the bus's clock.

-- next_at: when the rate would be used up, had all come evenly (GCRA's theoretical arrival time).
CREATE TABLE integrations (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT    NOT NULL UNIQUE,
    enabled    INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    next_at    INTEGER NOT NULL DEFAULT 0
);

-- config: JSON that may be listed. sealed: the secrets, encrypted; key_id says with which key.
CREATE TABLE integration_configs (
    integration INTEGER PRIMARY KEY,
    changed_at  INTEGER NOT NULL,
    config      BLOB    NOT NULL,
    key_id      TEXT    NOT NULL,
    sealed      BLOB    NOT NULL
);

-- What came. nonce: a digest of what was signed, of what was taken alone; so no process takes the same again.
-- delivery: the sender's id of the event. seq: the message's place in the log. count: how many alike, of refusals.
CREATE TABLE integration_events (
    number         INTEGER PRIMARY KEY AUTOINCREMENT,
    integration_id TEXT    NOT NULL,
    timestamp      INTEGER NOT NULL,
    outcome        TEXT    NOT NULL,
    count          INTEGER NOT NULL,
    address        TEXT    NOT NULL,
    request_id     TEXT    NOT NULL,
    bytes          INTEGER NOT NULL,
    event          TEXT,
    delivery       TEXT,
    nonce          BLOB,
    seq            INTEGER
);
CREATE UNIQUE INDEX integration_events_once ON integration_events (integration_id, nonce) WHERE nonce IS NOT NULL;
CREATE UNIQUE INDEX integration_events_delivered ON integration_events (integration_id, delivery)
 WHERE outcome = 'accepted' AND delivery IS NOT NULL;
CREATE INDEX integration_events_of ON integration_events (integration_id, number);
CREATE INDEX integration_events_refused ON integration_events (number) WHERE nonce IS NULL;
