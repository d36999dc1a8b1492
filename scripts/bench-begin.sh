# Sourced by the benchmarks on the running lab: builds them, says where the lab is ($person) and how its tailnet is joined (${tailnet[@]});
# `cached FAMILY PROGRAM` finds a program of the lab's cache, the newest, or nothing.
person=/run/guildnet-lab/${GUILDNET_LAB_INSTANCE:-default}/person
if [[ ! -r $person/headscale-url ]]; then
    echo "error: no lab is up, or its files at $person can't be read" >&2
    echo "  hint: make up, as the same user" >&2
    exit 3
fi
# With the others, so that its dependencies are theirs.
cargo build --release --locked -p guildnet -p guildnet-lab -p guildnet-bench
tailnet=(--headscale-url "$(<"$person/headscale-url")" --headscale-api-key-file "$person/headscale-api-key"
    --headscale-ca "$person/headscale-ca.pem")
cached() {
    find "${GUILDNET_LAB_CACHE:-/var/cache/guildnet-lab}" -path "*/$1-*/bin/$2" 2>/dev/null | sort -V | tail -n 1
}
