#!/usr/bin/env bash
# `make bench`: the connector beside Go's tsnet, interleaved, on the lab's cluster a (`make up` first; as root, for what needs a link; an
# hour); `make bench-quick`: a fair part of it, in fewer rounds. Both leave their figures and a chart in bench/results/.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/bench-begin.sh
cache=${GUILDNET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/guildnet}
sum=$(cat bench/peers/tsnet/* | sha256sum)
tsnet=$cache/bench-tsnet-${sum:0:10}/tsnet
if [[ ! -x $tsnet ]]; then
    echo "building the tsnet client (once)" >&2
    mkdir -p "${tsnet%/*}"
    (cd bench/peers/tsnet && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$tsnet.new" .)
    mv "$tsnet.new" "$tsnet"
fi
# Beside tsnet, a tailscaled of the lab's, if its cache can be read; and a client host behind a link, if we are root.
target=${CARGO_TARGET_DIR:-target}/release
more=(--lab "$target/guildnet-lab" --kubeconfig "$person/a.kubeconfig")
tailscale=$(cached tailscale tailscaled)
if [[ -n $tailscale ]]; then
    more+=(--tailscale "${tailscale%/*}")
fi
if ((EUID == 0)); then
    "$target/guildnet-lab" host bench --link 1 >/dev/null
    more+=(--host bench)
fi
mkdir -p bench/results
commit=$(git rev-parse --short HEAD)$(git diff --quiet HEAD -- crates bench ':!bench/results' || echo ' with changes')
exec "$target/guildnet-bench" compare --tsnet "$tsnet" "${more[@]}" \
    --save bench/results/tailnet.json --commit "$commit" "${tailnet[@]}" "$@"
