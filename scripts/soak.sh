#!/usr/bin/env bash
# `make soak`: one connector on the lab's cluster a kept busy for an hour, a line a minute (`make up` first; ARGS='--minutes 5').
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/bench-begin.sh
exec "${CARGO_TARGET_DIR:-target}/release/guildnet-bench" soak "${tailnet[@]}" "$@"
