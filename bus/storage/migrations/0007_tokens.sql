-- What is derived from credentials (bus/identity). Moments are microseconds since 1970.

-- JWTs and sessions that were ended before their time, until they would have ended anyway.
CREATE TABLE revoked_credentials (
    id         TEXT PRIMARY KEY,
    expires_at INTEGER NOT NULL
) WITHOUT ROWID;

-- One-time tickets. digest: SHA-256 of the ticket, which is kept nowhere. reference: JSON, whose credential it stands for.
-- client, origin: whom it is good for; NULL means anybody.
CREATE TABLE tickets (
    digest     BLOB PRIMARY KEY,
    caller     TEXT    NOT NULL,
    reference  TEXT    NOT NULL,
    client     TEXT,
    origin     TEXT,
    expires_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX tickets_by_caller ON tickets (caller);
CREATE INDEX tickets_by_end ON tickets (expires_at);
