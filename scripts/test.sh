#!/usr/bin/env bash
# `make test`: lint, then every test but the long ones. The fleet's need root and a lab of their own, which is always taken
# down. `make lab-faults`: the same with the tests that take a fleet apart and put it together again (PROFILE=faults).
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$(scripts/tools.sh):$PATH
profile=${PROFILE:-ci}
if [[ $profile == ci ]]; then scripts/lint.sh; fi
scripts/build.sh

select=()
if ((EUID == 0)); then
    export GUILDNET_LAB_INSTANCE=${GUILDNET_LAB_INSTANCE:-test}
    # The Host Apps that the tests share end with the run, as the lab does. After a failure the end of their logs is shown: nothing
    # else will be left of them.
    clean_up() {
        local home
        for home in "/run/guildnet-lab/$GUILDNET_LAB_INSTANCE/person"/e2e-*; do
            if [[ ${status:-1} != 0 && -e $home/host.log ]]; then
                echo "the end of $home/host.log:" >&2
                tail -n 80 "$home/host.log" >&2
            fi
            if [[ -e $home/host.pid ]]; then bin/guildnet --home "$home" down; fi
        done
        bin/guildnet-lab down
    }
    trap clean_up EXIT
    bin/guildnet-lab up
elif [[ ${CI:-} == true || $profile != ci ]]; then
    echo "error: the fleet's tests need root" >&2
    exit 8
else
    echo "NOT RUN: the fleet's tests need root (sudo make test)" >&2
    select=(-E 'not binary_id(guildnet-lab::it)')
fi

report=target/nextest/$profile/junit.xml
rm -f "$report"
status=0
cargo nextest run --release --locked --workspace --profile "$profile" "${select[@]}" || status=$?
if ((EUID == 0)) && [[ $profile == ci ]]; then
    # The fake Headscale's contract, asked of the lab's real one.
    person=/run/guildnet-lab/$GUILDNET_LAB_INSTANCE/person
    GUILDNET_HEADSCALE_URL=$(<"$person/headscale-url") GUILDNET_HEADSCALE_CA=$person/headscale-ca.pem \
        GUILDNET_HEADSCALE_API_KEY_FILE=$person/headscale-api-key \
        cargo nextest run --release --locked --workspace --run-ignored only -E 'test(a_real_server_meets_the_contract)' ||
        status=$?
fi
if [[ -f $report ]]; then scripts/slowest.sh "$report"; fi
if ((status == 0)) && [[ $profile == ci ]]; then
    cargo test --release --locked --workspace --doc --quiet || status=$?
fi
echo "tests ($profile): $SECONDS s, $( ((status == 0)) && echo passed || echo FAILED )" >&2
exit "$status"
