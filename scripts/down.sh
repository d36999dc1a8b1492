#!/usr/bin/env bash
# `make down`: the Host App, then the lab if it is there. PURGE=1 removes the Host App's state as well.
set -euo pipefail
cd "$(dirname "$0")/.."
if [[ -x bin/guildnet ]]; then
    bin/guildnet down ${PURGE:+--purge}
fi
if [[ -d /run/guildnet-lab/${GUILDNET_LAB_INSTANCE:-default} ]]; then
    scripts/lab.sh down
fi
