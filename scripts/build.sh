#!/usr/bin/env bash
# Builds the two commands and puts them at bin/.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked -p guildnet -p guildnet-lab
mkdir -p bin
for name in guildnet guildnet-lab; do
    # A running command keeps its file: replace the name, never the bytes.
    install -m 0755 "${CARGO_TARGET_DIR:-target}/release/$name" "bin/.$name.new"
    mv -f "bin/.$name.new" "bin/$name"
done
