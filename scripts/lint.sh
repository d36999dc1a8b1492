#!/usr/bin/env bash
# Format, clippy with warnings as errors, licences and sources of dependencies.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$(scripts/tools.sh):$PATH
cargo fmt --all --check
cargo clippy --release --locked --workspace --all-targets -- -D warnings
# Not among all targets: they are no part of a plain test run.
cargo clippy --release --locked -p guildnet-lab --test wide --test paths -- -D warnings
# Its advisory database is a network service of its own; licences, duplicates and sources are judged from the lock file.
cargo deny --log-level error check licenses bans sources
