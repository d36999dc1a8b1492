#!/usr/bin/env bash
# The Debian packages that the lab runs on: says which are missing and what each is for, installs those, nothing else.
# Safe to run again: with nothing missing it does nothing. --check only reports, and exits 8 if something is missing.
set -euo pipefail

# PACKAGE|FILE that proves it is there|what the lab uses it for
needed='
containerd|/usr/bin/containerd|runs the pods of every node
runc|/usr/sbin/runc|runs the containers for containerd
containernetworking-plugins|/usr/lib/cni/ptp|gives pods their interfaces and addresses
busybox-static|/bin/busybox|the shell inside the lab'\''s images
iproute2|/sbin/ip|network namespaces, bridge, links
iptables|/usr/sbin/iptables-restore|gateways that masquerade; kube-proxy
conntrack|/usr/sbin/conntrack|cuts open connections when a door is shut; kube-proxy
ipset|/usr/sbin/ipset|kube-proxy
socat|/usr/bin/socat|kubectl port-forward
ethtool|/usr/sbin/ethtool|kubelet looks for it
util-linux|/usr/bin/nsenter|enters the namespaces
systemd|/lib/systemd/systemd|runs the Host App'\''s units in the end-to-end tests
chromium|/usr/bin/chromium|the browser of the end-to-end tests
libnss3-tools|/usr/bin/certutil|makes that browser trust the Host App
python3-kubernetes|/usr/lib/python3/dist-packages/kubernetes/__init__.py|a client of the clusters in the end-to-end tests
'
missing=()
while IFS='|' read -r package file purpose; do
    [[ -n $package ]] || continue
    # Either place: newer Debian has merged /bin and /sbin into /usr.
    if [[ ! -e $file && ! -e /usr$file ]]; then
        missing+=("$package")
        printf 'missing: %-28s %s\n' "$package" "$purpose" >&2
    fi
done <<<"$needed"

((${#missing[@]})) || exit 0
if [[ ${1:-} == --check ]]; then
    exit 8
fi
if ((EUID != 0)); then
    echo "error: installing packages needs root: sudo $0" >&2
    exit 8
fi
if ! command -v apt-get >/dev/null; then
    echo "error: no apt-get here: install the packages above by your system's own means" >&2
    exit 8
fi
echo "installing by apt-get: ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install --yes --quiet --no-install-recommends "${missing[@]}")
# A package list that is too old names versions that are gone: refresh it and try once more.
"${install[@]}" >&2 || { apt-get update --quiet >&2 && "${install[@]}" >&2; }
