#!/usr/bin/env bash
# `make bench-kube`: the lab's cluster a asked directly, through a connector and through the Host App, interleaved (`make up` first; as root).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/bench-begin.sh
through=$(mktemp)
# The direct way leads through the cluster's door, which is open only meanwhile.
trap 'bin/guildnet-lab door a shut; rm -f "$through"' EXIT
bin/guildnet-lab door a open
bin/guildnet kubeconfig print a >"$through"
kubectl=$(cached kubernetes kubectl)
"${CARGO_TARGET_DIR:-target}/release/guildnet-bench" kube --direct "$person/a.kubeconfig" --through "$through" --kubectl "$kubectl" \
    "${tailnet[@]}" "$@"
