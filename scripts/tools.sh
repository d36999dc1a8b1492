#!/usr/bin/env bash
# Installs the test runner and the dependency checker, each at a pinned version in a folder of that version, once.
# Prints the folders to put on PATH, joined by ':'.
set -euo pipefail
cache=${GUILDNET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/guildnet}
path=
for tool in cargo-nextest-0.9.151 cargo-deny-0.20.2; do
    name=${tool%-*}
    if [[ ! -x $cache/$tool/bin/$name ]]; then
        echo "installing $tool into $cache (once)" >&2
        # A target folder of its own (cargo's temporary one): the tool's build must not mix with ours.
        env -u CARGO_TARGET_DIR cargo install --quiet --locked --root "$cache/$tool" "$name@${tool##*-}" >&2
    fi
    path+=${path:+:}$cache/$tool/bin
done
echo "$path"
