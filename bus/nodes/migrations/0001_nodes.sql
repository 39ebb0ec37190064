-- The nodes that work on the log. key: drawn by the node, and kept in its folder. number: as small as possible.
CREATE TABLE bus_nodes (
    key     TEXT PRIMARY KEY,
    number  INTEGER NOT NULL UNIQUE,
    seen_at INTEGER NOT NULL
);

-- What one process of all does. until: by the bus's clock. token: raised whenever it changes hands, so that who was frozen
-- meanwhile can tell.
CREATE TABLE leases (
    name   TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    until  INTEGER NOT NULL,
    token  INTEGER NOT NULL
);
