#!/usr/bin/env bash
# Runs bin/guildnet-lab as root: directly, or by sudo with the settings and the PATH (for Go) of the caller.
set -euo pipefail
cd "$(dirname "$0")/.."
if ((EUID == 0)) || ! command -v sudo >/dev/null; then
    exec bin/guildnet-lab "$@"
fi
exec sudo --preserve-env=GUILDNET_LAB_INSTANCE,GUILDNET_LAB_CACHE,GOPROXY,GOFLAGS,GONOSUMDB,GOSUMDB env "PATH=$PATH" bin/guildnet-lab "$@"
