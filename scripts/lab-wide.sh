#!/usr/bin/env bash
# Runs wide tests of the lab by name, on a lab that they bring up themselves and that is down afterwards, as root:
# `make lab-ten` (ten equal clusters, by via and by 4via6), `make lab-matrix` (every Headscale with every router) and
# `make lab-nat` (routers, links and kinds of NAT).
set -euo pipefail
cd "$(dirname "$0")/.."
tests=${1:?the name of a test, or a part of it}
if ((EUID != 0)); then
    echo "error: the lab needs root" >&2
    echo "  hint: sudo make lab-ten, lab-matrix or lab-nat" >&2
    exit 8
fi
PATH=$(scripts/tools.sh):$PATH
export GUILDNET_LAB_INSTANCE=${GUILDNET_LAB_INSTANCE:-wide}
# The raw clients of the matrices stand beside the commands.
cargo build --release --locked -p guildnet -p guildnet-lab -p guildnet-tailnet --bins --example isolation --example talk
# A test takes its lab down; this is for the one that is killed.
trap 'timeout 60 "${CARGO_TARGET_DIR:-target}/release/guildnet-lab" down' EXIT
status=0
timeout "${LIMIT:-90m}" cargo nextest run --release --locked -p guildnet-lab --test wide --test paths --no-fail-fast --success-output immediate \
    -E "test($tests)" || status=$?
echo "$tests: $SECONDS s, $( ((status == 0)) && echo passed || echo FAILED )" >&2
exit "$status"
