-- What a person's clusters need. Columns marked sealed hold XChaCha20-Poly1305 boxes (src/seal.rs); `seal_key` names the
-- key that opens them. Times are milliseconds since 1970-01-01 UTC.
CREATE TABLE clusters (
    id              TEXT PRIMARY KEY NOT NULL,
    kubeconfig      BLOB NOT NULL,              -- sealed
    context         TEXT NOT NULL,
    login_server    TEXT NOT NULL,
    ca_pem          TEXT,
    client_auth_key BLOB,                       -- sealed
    router_auth_key BLOB,                       -- sealed
    routes          TEXT NOT NULL,
    state_path      BLOB NOT NULL,              -- a path's bytes
    namespace       TEXT NOT NULL,
    namespace_id    INTEGER,
    site            INTEGER,
    api_address     TEXT,
    cluster_uid     TEXT,
    seal_key        TEXT NOT NULL,
    created         INTEGER NOT NULL,
    updated         INTEGER NOT NULL
) STRICT;

CREATE TABLE settings (
    name     TEXT PRIMARY KEY NOT NULL,
    value    TEXT,
    sealed   BLOB,                              -- sealed
    seal_key TEXT,
    CHECK ((value IS NULL) <> (sealed IS NULL)),
    CHECK ((sealed IS NULL) = (seal_key IS NULL))
) STRICT;
