#!/usr/bin/env bash
# `make up`: the lab's fleet by default, real clusters when CLUSTERS names them. The same `guildnet up` either way.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -n ${CLUSTERS:-} ]]; then
    flags=()
    for cluster in $CLUSTERS; do flags+=(--cluster "$cluster"); done
    exec bin/guildnet up "${flags[@]}"
fi

person=/run/guildnet-lab/${GUILDNET_LAB_INSTANCE:-default}/person
scripts/lab.sh up
scripts/lab.sh door all open
bin/guildnet up --no-verify \
    --cluster "a=$person/a.kubeconfig" --cluster "b=$person/b.kubeconfig" \
    --headscale-url "$(<"$person/headscale-url")" --headscale-api-key-file "$person/headscale-api-key" \
    --headscale-ca "$person/headscale-ca.pem" --routes 10.96.0.0/16,10.244.0.0/16
# From here on the clusters are reached through their tailnets or not at all.
scripts/lab.sh door all shut
status=0
bin/guildnet verify || status=$?
echo "make up: $SECONDS s" >&2
exit "$status"
