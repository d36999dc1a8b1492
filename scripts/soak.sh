#!/usr/bin/env bash
# `make soak`: one connector on the lab's cluster a kept busy for an hour, a line a minute (`make up` first; ARGS='--minutes 5').
set -euo pipefail
cd "$(dirname "$0")/.."
person=/run/guildnet-lab/${GUILDNET_LAB_INSTANCE:-default}/person
if [[ ! -r $person/headscale-url ]]; then
    echo "error: no lab is up, or its files at $person can't be read" >&2
    echo "  hint: make up, as the same user" >&2
    exit 3
fi
# With the others, so that its dependencies are theirs.
cargo build --release --locked -p guildnet -p guildnet-lab -p guildnet-bench
exec "${CARGO_TARGET_DIR:-target}/release/guildnet-bench" soak \
    --headscale-url "$(<"$person/headscale-url")" --headscale-api-key-file "$person/headscale-api-key" \
    --headscale-ca "$person/headscale-ca.pem" "$@"
