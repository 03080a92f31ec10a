#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs `cargo test` with the given arguments and closes with one line that counts what really ran. Fails when a test fails,
# when a test target does not build, and when nothing ran.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --locked --no-fail-fast "$@" 2>&1 | tee "$log"
status=${PIPESTATUS[0]}

awk -v status="$status" '
    /^test result: / { passed += $4; failed += $6; skipped += $8 }
    /^test .* \.\.\. FAILED$/ { names = names "\n  " $2 }
    END {
        if (status != 0 && !failed) { print "\ncargo test ended with status " status " and counted no failure"; failed = 1 }
        if (names) print "\nfailed:" names
        printf "\n%d passed, %d failed, %d skipped\n", passed, failed, skipped
        exit failed || !passed
    }' "$log"
