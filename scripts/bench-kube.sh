#!/usr/bin/env bash
# `make bench-kube`: the lab's cluster a asked directly, through a connector and through the Host App, interleaved (`make up` first; as root).
set -euo pipefail
cd "$(dirname "$0")/.."
person=/run/guildnet-lab/${GUILDNET_LAB_INSTANCE:-default}/person
if [[ ! -r $person/a.kubeconfig ]]; then
    echo "error: no lab is up, or its files at $person can't be read" >&2
    echo "  hint: make up, as the same user" >&2
    exit 3
fi
# With the others, so that its dependencies are theirs.
cargo build --release --locked -p guildnet -p guildnet-lab -p guildnet-bench
through=$(mktemp)
# The direct way leads through the cluster's door, which is open only meanwhile.
trap 'bin/guildnet-lab door a shut; rm -f "$through"' EXIT
bin/guildnet-lab door a open
bin/guildnet kubeconfig print a >"$through"
"${CARGO_TARGET_DIR:-target}/release/guildnet-bench" kube --direct "$person/a.kubeconfig" --through "$through" \
    --headscale-url "$(<"$person/headscale-url")" --headscale-api-key-file "$person/headscale-api-key" \
    --headscale-ca "$person/headscale-ca.pem" "$@"
