#!/usr/bin/env bash
# Where .env names 127.0.0.1 as Headscale server, writes the address that pods can reach: scripts/env-sync-lan.sh [flags]
exec "$(dirname "$0")/../bin/guildnet" headscale env-sync-lan "$@"
