-- Each cluster's own loopback address, counted from 127.0.0.2 (src/store/forwards.rs). A number is given once: a cluster that
-- is removed keeps its row, since browsers keep cookies and passwords by address, and no other cluster must get them.
CREATE TABLE loopbacks (
    number  INTEGER PRIMARY KEY AUTOINCREMENT,
    cluster TEXT NOT NULL UNIQUE
) STRICT;

INSERT INTO loopbacks (cluster) SELECT id FROM clusters ORDER BY created, id;

-- Forwards that a person left to the Host App. Times are milliseconds since 1970-01-01 UTC.
CREATE TABLE forwards (
    local   TEXT PRIMARY KEY NOT NULL,          -- 127.x.y.z:PORT
    cluster TEXT NOT NULL,
    target  TEXT NOT NULL,                      -- HOST:PORT, a name of the cluster's or an address in it
    created INTEGER NOT NULL
) STRICT;

-- Clusters whose SOCKS5 and CONNECT listeners were ever switched on. Their passwords are sealed settings.
CREATE TABLE proxies (
    cluster    TEXT PRIMARY KEY NOT NULL,
    enabled    INTEGER NOT NULL CHECK (enabled IN (0, 1)),
    socks_port INTEGER NOT NULL,
    http_port  INTEGER NOT NULL
) STRICT;
