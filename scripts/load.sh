#!/usr/bin/env bash
# `make load`: bulkheads, and a hundred clusters in one Host App, measured on a lab of its own (as root; minutes; 8 GiB of memory).
#
# Bulkheads: four real clusters (etcd and API server); b is frozen, c is frozen for 30 s at a time, d is flooded, a is measured.
# A hundred: three of them, and 97 fakes at the wire: each has its namespace, keys and policy on the lab's real Headscale, a
# record in the Host App, and a router, a real tailscaled without a device. What those routers lead to is cluster a's API
# server. Variables: CLUSTERS (100), ROUTERS (all), ROUNDS (3), SECONDS_EACH (10), WAIT (300). --json prints JSON.
set -euo pipefail
cd "$(dirname "$0")/.."
json=; [[ ${1:-} == --json ]] && json=--json
total=${CLUSTERS:-100} routers=${ROUTERS:-$((total - 3))} wait=${WAIT:-300}
if ((EUID != 0)); then
    echo "error: the lab needs root" >&2
    echo "  hint: sudo make load" >&2
    exit 8
fi
say() { echo "load: $*" >&2; }
# With the others, so that its dependencies are theirs.
cargo build --release --locked -p guildnet -p guildnet-lab -p guildnet-bench
target=${CARGO_TARGET_DIR:-target}/release
export GUILDNET_LAB_INSTANCE=${GUILDNET_LAB_INSTANCE:-load}
person=/run/guildnet-lab/$GUILDNET_LAB_INSTANCE/person
lab() { "$target/guildnet-lab" "$@"; }
# Puts a cluster's processes (API server, etcd, router) where they run only when nothing else wants to: what they take of the
# processors is taken from nobody, as if they had their own. In cgroup v1's hierarchy for processors alone, where the lab looks
# for nothing that it has to end.
idle=/sys/fs/cgroup/cpu/gnlab-$GUILDNET_LAB_INSTANCE-elsewhere
elsewhere() {
    local pid
    mkdir -p "$idle" 2>/dev/null && echo 1 2>/dev/null >"$idle/cpu.idle" || return 1
    for pid in $(ip netns pids "gnlab-$GUILDNET_LAB_INSTANCE-$1"); do echo "$pid" >"$idle/cgroup.procs"; done
}
started=()
# In the reverse order of their making; each may be missing.
end() {
    set +e
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null; done
    for pid in "${started[@]}"; do wait "$pid" 2>/dev/null; done
    [[ -d ${home:-} ]] && guildnet down >&2
    timeout 120 "$target/guildnet-lab" down >&2
    [[ ! -d $idle ]] || rmdir "$idle"
}
trap end EXIT
lab up --light --clusters a,b,c,d >&2
ns=gnlab-$GUILDNET_LAB_INSTANCE-a
home=$person/load
read -r uid gid < <(stat -c '%u %g' "$person")
install -d -m 0700 -o "$uid" -g "$gid" "$home"
export GUILDNET_HOME=$home GUILDNET_LISTEN=127.0.0.1:18092
target=$(realpath "$target")
guildnet() { (cd "$home" && "$target/guildnet" "$@"); }
server=(--headscale-url "$(cat "$person/headscale-url")" --headscale-api-key-file "$person/headscale-api-key" --headscale-ca "$person/headscale-ca.pem")
routes=10.96.0.0/16,10.244.0.0/16
value() { sed -n "s/.*\"$2\": *\"\([^\"]*\)\".*/\1/p" "$1"; }

# Namespace, keys and policy.
namespace() {
    guildnet headscale namespace "$1" --routes "$routes" --file "$home/$1.json" "${server[@]}" >/dev/null 2>&1
    (umask 077; value "$home/$1.json" routerAuthKey >"$home/$1.key")
}
# The record, by the open door of cluster $2. On a busy machine Headscale takes its time among 200 nodes, so it is tried again,
# with a new key, since the first one is used.
add() {
    for try in 1 2 3 4; do
        ((try == 1)) || (flock 9; namespace "$1") 9>"$home/policy.lock"
        guildnet cluster add "$1" --replace --kubeconfig "$person/$2.kubeconfig" --from "$home/$1.json" "${server[@]}" >/dev/null 2>"$home/$1.said" &&
            return
    done
    cat "$home/$1.said" >&2
    return 1
}
# Runs a function for each of the names, four at once.
four() {
    local each=$1 name pids=()
    shift
    for name in "$@"; do
        "$each" "$name" & pids+=($!)
        ((${#pids[@]} < 4)) || { wait "${pids[0]}"; pids=("${pids[@]:1}"); }
    done
    for name in "${pids[@]}"; do wait "$name"; done
}

say "four real clusters"
lab door all open >&2
for id in a b c d; do
    namespace "$id"
    lab router "$id" --routes "$routes" --hostname "gn-$id-router" --auth-key-file "$home/$id.key" >&2
    add "$id" "$id"
done
lab door all shut >&2
guildnet up --no-verify >&2
for id in a b c d; do
    guildnet kubeconfig print "$id" >"$home/$id.kubeconfig"
done

token=$(guildnet token)
metrics() { curl -sf --max-time 10 --cacert "$home/certs/host-ca.crt" -H "Authorization: Bearer $token" "https://$GUILDNET_LISTEN/metrics"; }
host() { cut -d' ' -f1 "$home/host.pid"; }
# Time on processors of the Host App, in hundredths of a second (proc_pid_stat(5)).
ticks() { awk '{ print $14 + $15 }' "/proc/$(host)/stat"; }

reports=()
bulkheads() { # what, flags
    say "bulkheads: $1"
    local before begun cores
    before=$(ticks) begun=$SECONDS
    "$target/guildnet-bench" bulkheads --healthy "$home/a.kubeconfig" --rounds "${ROUNDS:-3}" --seconds "${SECONDS_EACH:-10}" $json "${@:2}" >"$home/report"
    cores=$(awk -v t=$(($(ticks) - before)) -v s=$((SECONDS - begun)) 'BEGIN { printf "%.2f", t / 100 / s }')
    reports+=("{\"what\": \"$1\", \"hostAppCores\": $cores, \"seen\": $(cat "$home/report")}")
    [[ -n $json ]] || { echo "$1 (the Host App took $cores cores on average)"; sed 's/^/    /' "$home/report"; }
}
if [[ -z ${ONLY_HUNDRED:-} ]]; then
    # Each is asked once before, so that what hangs is a cluster that worked.
    "$target/guildnet-bench" bulkheads --healthy "$home/b.kubeconfig" --rounds 1 --seconds 1 >/dev/null
    "$target/guildnet-bench" bulkheads --healthy "$home/c.kubeconfig" --rounds 1 --seconds 1 >/dev/null
    "$target/guildnet-bench" bulkheads --healthy "$home/d.kubeconfig" --rounds 1 --seconds 1 >/dev/null
    lab fault freeze b/kube-apiserver >&2
    (while lab fault freeze c/kube-apiserver && sleep 30 && lab fault thaw c/kube-apiserver && sleep 0.5; do :; done >/dev/null 2>&1) &
    late=$!
    bulkheads "one hangs, one answers 30 s late" --stuck "$home/b.kubeconfig" --stuck "$home/c.kubeconfig"
    bulkheads "one is flooded at 500 requests a second" --flood "$home/d.kubeconfig" --pace 500
    # What the flood costs a by using up the machine, since the Host App has no part in it.
    lab door d open >&2
    bulkheads "control: the same flood, straight to its API server" --flood "$person/d.kubeconfig" --pace 500
    lab door d shut >&2
    bulkheads "one is flooded without a pace" --flood "$home/d.kubeconfig"
    bulkheads "all three, the flood at 500 a second" --stuck "$home/b.kubeconfig" --stuck "$home/c.kubeconfig" --flood "$home/d.kubeconfig" --pace 500
    bulkheads "all three, the flood without a pace" --stuck "$home/b.kubeconfig" --stuck "$home/c.kubeconfig" --flood "$home/d.kubeconfig"
    # As they are in life: d and who floods it on machines of their own.
    if elsewhere d; then
        bulkheads "one is flooded at 500 requests a second, on other machines" --flood "$home/d.kubeconfig" --pace 500 --group "$idle"
        bulkheads "one is flooded without a pace, on other machines" --flood "$home/d.kubeconfig" --group "$idle"
    else
        say "not measured: a flood on other machines; that needs cgroup v1's cpu.idle (Linux 5.15)"
    fi
    kill "$late"; wait "$late" 2>/dev/null || true
    lab fault thaw b/kube-apiserver >&2
    lab fault thaw c/kube-apiserver >&2 || true
fi

tailscaled=$(ls -d "${GUILDNET_LAB_CACHE:-/var/cache/guildnet-lab}"/tailscale-1.98*/ | tail -1)
tailscaled=$(find "$tailscaled" -name tailscaled -type f | head -1)
router_of() { # starts one
    local dir=$home/router-$1
    mkdir -p "$dir"
    SSL_CERT_FILE=$person/headscale-ca.pem TS_NO_LOGS_NO_SUPPORT=true GOMAXPROCS=1 GOGC=20 nice -n 10 ip netns exec "$ns" "$tailscaled" \
        --tun=userspace-networking --statedir="$dir" --socket="$dir/s" --port=0 --no-logs-no-support >/dev/null 2>&1 &
    started+=($!)
}
router_joins() {
    local dir=$home/router-$1
    until [[ -S $dir/s ]]; do sleep 0.1; done
    timeout 90 "$(dirname "$tailscaled")/tailscale" --socket="$dir/s" up --login-server="$(cat "$person/headscale-url")" --auth-key="file:$home/$1.key" \
        --advertise-routes="$routes" --hostname="gn-$1-router" --accept-dns=false --timeout=60s >/dev/null
}
say "$((total - 3)) fakes, $routers of them with a router"
guildnet cluster remove d --forget >&2
lab door a open >&2
begun=$SECONDS
fakes=() with=()
for ((n = 1; n <= total - 3; n++)); do fakes+=("$(printf 'f%02d' "$n")"); done
with=("${fakes[@]:0:routers}")
# One after the other: each changes the one policy.
for id in "${fakes[@]}"; do namespace "$id"; done
say "namespaces, keys and policy after $((SECONDS - begun)) s"
for id in "${with[@]}"; do router_of "$id"; done
four router_joins "${with[@]}"
say "routers after $((SECONDS - begun)) s"
add_fake() { add "$1" a; }
guildnet down >&2
four add_fake "${fakes[@]}"
say "records after $((SECONDS - begun)) s"
lab door a shut >&2
made=$((SECONDS - begun))

say "the Host App starts with all of them"
begun=$(date +%s%N)
since() { awk -v a="$begun" -v b="$(date +%s%N)" 'BEGIN { printf "%.1f", (b - a) / 1e9 }'; }
GUILDNET_LISTEN=$GUILDNET_LISTEN guildnet -v serve 2>"$home/serve.log" &
started+=($!)
until metrics >"$home/metrics"; do sleep 0.02; done
door=$(since)
usable() { awk '/^guildnet_connector_usable\{/ { n += $2 } END { print n + 0 }' "$home/metrics"; }
wanted=$((3 + routers))
limit=$((SECONDS + wait))
until metrics >"$home/metrics" && (($(usable) >= wanted)) || ((SECONDS > limit)); do sleep 0.2; done
ready=$(since) count=$(usable)
# Memory in MiB (resident; shared by its share; written by itself), files and threads, as "rss pss own files threads".
look() {
    local pid; pid=$(host)
    awk '/^Rss:/ { rss = $2 } /^Pss:/ { pss = $2 } /^Private_Dirty:/ { own = $2 } END { printf "%.0f %.0f %.0f ", rss / 1024, pss / 1024, own / 1024 }' "/proc/$pid/smaps_rollup"
    echo "$(find "/proc/$pid/fd" -mindepth 1 | wc -l) $(find "/proc/$pid/task" -mindepth 1 -maxdepth 1 | wc -l)"
}
at_start=$(look)
sleep 60
before=$(ticks); sleep 30; after=$(ticks)
at_rest=$(look)
percent=$(awk -v t=$((after - before)) 'BEGIN { printf "%.2f", t / 30 }')
scrape=$(curl -s -o "$home/metrics" -w '%{time_total}' --cacert "$home/certs/host-ca.crt" -H "Authorization: Bearer $token" "https://$GUILDNET_LISTEN/metrics")
series=$(grep -vc '^#' "$home/metrics") bytes=$(wc -c <"$home/metrics")
"$target/guildnet-bench" bulkheads --healthy "$home/a.kubeconfig" --rounds 1 --seconds 10 --json >"$home/report"
among=$(sed -n '/"alone"/,/}/p' "$home/report" | tr -d ' \n' | sed 's/"alone"://; s/,$//')
if [[ -n $json ]]; then
    memory() { set -- $1; echo "{\"residentMiB\": $1, \"proportionalMiB\": $2, \"ownMiB\": $3, \"files\": $4, \"threads\": $5}"; }
    (IFS=,; echo "{\"bulkheads\": [${reports[*]}],")
    echo "\"hundred\": {\"clusters\": $total, \"routers\": $((3 + routers)), \"doorSeconds\": $door, \"usable\": $count, \"usableSeconds\": $ready,"
    echo "\"start\": $(memory "$at_start"), \"rest\": $(memory "$at_rest"), \"restCorePercent\": $percent,"
    echo "\"metrics\": {\"bytes\": $bytes, \"series\": $series, \"seconds\": $scrape}, \"getsAmongThem\": $among}}"
else
    memory() { set -- $1; echo "$1 MiB resident ($2 MiB its share, $3 MiB written by itself), $4 files, $5 threads"; }
    echo "$total clusters in one Host App: 3 real, $((total - 3)) fakes, $routers of these with a router (made in $made s)"
    echo "    door answers after         $door s"
    echo "    connectors usable          $count after $ready s"
    echo "    then                       $(memory "$at_start")"
    echo "    a minute later             $(memory "$at_rest")"
    echo "    processor at rest          $percent % of a core, over 30 s"
    echo "    /metrics                   $series series, $bytes bytes, in $scrape s"
    echo "    gets of cluster a          $among"
fi
