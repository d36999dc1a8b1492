#!/usr/bin/env bash
# Prints the ten slowest tests of a JUnit report.
set -euo pipefail
echo "slowest tests:"
grep -o '<testcase [^>]*>' "$1" |
    sed -E 's/.* name="([^"]*)".* classname="([^"]*)".* time="([^"]*)".*/\3 \2 \1/; s/&lt;/</g; s/&gt;/>/g; s/&amp;/\&/g' |
    sort -rn | awk 'NR <= 10 { printf "  %8.2f s  %s  %s\n", $1, $2, $3 }'
