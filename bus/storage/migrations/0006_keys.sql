-- API keys (bus/identity/keys.py). digest: SHA-256 of the whole key, which is kept nowhere. grants: JSON. Moments are
-- microseconds since 1970; used_at is rounded to the hour. successor: the key that this one was rotated to.
CREATE TABLE api_keys (
    id         TEXT PRIMARY KEY,
    label      TEXT    NOT NULL,
    digest     BLOB    NOT NULL,
    grants     TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    used_at    INTEGER,
    successor  TEXT
) WITHOUT ROWID;
