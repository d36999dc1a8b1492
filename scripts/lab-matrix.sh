#!/usr/bin/env bash
# `make lab-matrix`: every Headscale with every router; the table goes to docs/operations/matrix.md.
set -euo pipefail
GUILDNET_MATRIX_FILE=$(cd "$(dirname "$0")/.." && pwd)/docs/operations/matrix.md
export GUILDNET_MATRIX_FILE
exec "$(dirname "$0")/lab-wide.sh" every_headscale_with_every_router
