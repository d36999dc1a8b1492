#!/usr/bin/env bash
# `make bench`: the connector beside Go's tsnet, interleaved, on the lab's cluster a (`make up` first); `make bench-quick`: the same in
# fewer rounds. Both leave their figures in bench/results/.
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
cache=${GUILDNET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/guildnet}
sum=$(cat bench/peers/tsnet/* | sha256sum)
tsnet=$cache/bench-tsnet-${sum:0:10}/tsnet
if [[ ! -x $tsnet ]]; then
    echo "building the tsnet client (once)" >&2
    mkdir -p "${tsnet%/*}"
    (cd bench/peers/tsnet && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$tsnet.new" .)
    mv "$tsnet.new" "$tsnet"
fi
mkdir -p bench/results
commit=$(git rev-parse --short HEAD)$(git diff --quiet HEAD -- crates bench || echo ' with changes')
exec "${CARGO_TARGET_DIR:-target}/release/guildnet-bench" compare --tsnet "$tsnet" \
    --save bench/results/tailnet.json --commit "$commit" \
    --headscale-url "$(<"$person/headscale-url")" --headscale-api-key-file "$person/headscale-api-key" \
    --headscale-ca "$person/headscale-ca.pem" "$@"
