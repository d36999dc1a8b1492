#!/usr/bin/env bash
# Applies a cluster's router and waits for it: scripts/deploy-tailscale-router.sh CLUSTER [flags]
exec "$(dirname "$0")/../bin/guildnet" router ensure "$@"
