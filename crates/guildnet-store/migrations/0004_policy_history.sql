-- Policies of Headscale servers that this device replaced, so that one can be put back. Policies are no secret; times are
-- milliseconds since 1970-01-01 UTC. Numbers count up and are not used again.
CREATE TABLE policy_history (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    server TEXT NOT NULL,
    at     INTEGER NOT NULL,
    what   TEXT NOT NULL,                       -- what the change was for, in words
    before TEXT,                                -- NULL: there was no policy
    after  TEXT NOT NULL
) STRICT;

CREATE INDEX policy_history_by_server ON policy_history (server, number);
