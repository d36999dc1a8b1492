#!/usr/bin/env bash
# Makes a cluster's namespace and keys on Headscale: scripts/headscale-namespace-and-keys.sh CLUSTER [flags]
exec "$(dirname "$0")/../bin/guildnet" headscale namespace "$@"
