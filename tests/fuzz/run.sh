#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Fuzz the parsers of bytes that others write.
#
#   make fuzz       tests/fuzz/run.sh "$(SECONDS)"          5 minutes a target, or as many seconds as wanted
#   make fuzz-ci    tests/fuzz/seeded.sh && tests/fuzz/run.sh 10      a minute in all, after the proof that this finds bugs
#
# Usage: run.sh SECONDS-PER-TARGET [TARGET...]
#
# libFuzzer with the stable compiler: its flags for coverage are LLVM's own. No address sanitizer, which needs a nightly
# compiler: the code under test has no unsafe, so that a bug is a panic, a wrapped number, a hang or too much memory.
# Every run begins with the committed corpus. A finding is kept in target/artifacts/TARGET and fails the run; to try it
# again, give its path to the program that the run names.

set -eu

here=$(cd "$(dirname "$0")" && pwd)
seconds=${1:?usage: run.sh SECONDS-PER-TARGET [TARGET...]}
shift
[ $# -gt 0 ] || set -- cni_stdin cni_args conflist annotations agent_frame netlink_reply

target_dir=${FUZZ_TARGET_DIR:-$here/target}
host=$(rustc -vV | sed -n 's/^host: //p')
work=${FUZZ_WORK:-$target_dir/work}
artifacts=$target_dir/artifacts${FUZZ_FEATURES:+-$FUZZ_FEATURES}

# With --target these apply to what is fuzzed and not to build scripts. The counters are found through section symbols,
# and the linker must keep the sections. Folded branches would hide conditions from the counters.
RUSTFLAGS="-Cpasses=sancov-module
 -Cllvm-args=-sanitizer-coverage-level=4
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
 -Cllvm-args=-sanitizer-coverage-pc-table
 -Cllvm-args=-sanitizer-coverage-trace-compares
 -Cllvm-args=-simplifycfg-branch-fold-threshold=0
 -Clink-arg=-Wl,-z,nostart-stop-gc"
RUSTFLAGS=$(printf '%s' "$RUSTFLAGS" | tr '\n' ' ')
export RUSTFLAGS
# shellcheck disable=SC2086 # one or no option
cargo build --quiet --release --locked --manifest-path "$here/Cargo.toml" --target-dir "$target_dir" --target "$host" \
    ${FUZZ_FEATURES:+--features "$FUZZ_FEATURES"}
[ -z "${FUZZ_BUILD_ONLY:-}" ] || exit 0

failed=
for target; do
    corpus=$here/corpus/$target
    program=$target_dir/$host/release/$target
    [ -d "$corpus" ] || { echo "fuzz: $target has no corpus" >&2; exit 2; }
    mkdir -p "$work/$target" "$artifacts/$target"
    set -- "-max_total_time=$seconds" -timeout=5 -rss_limit_mb=1024 -max_len=2048 -keep_seed=1 -print_final_stats=1 -verbosity=0 \
        "-artifact_prefix=$artifacts/$target/"
    # How often a branch is taken does not matter in so short a time, in which few inputs can each be changed often enough.
    [ "$seconds" -gt 60 ] || set -- "$@" -use_counters=0 -entropic=0
    [ ! -f "$here/dict/$target" ] || set -- "$@" "-dict=$here/dict/$target"
    begin=$(date +%s%N)
    # New inputs go to the first directory; the committed corpus is only read.
    if FUZZ_SEEDS=$corpus "$program" "$@" "$work/$target" "$corpus" >"$target_dir/$target.log" 2>&1; then
        executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$target_dir/$target.log")
        echo "fuzz: $target: nothing found in $seconds s, $executions inputs tried"
    else
        failed="$failed $target"
        ms=$((($(date +%s%N) - begin) / 1000000))
        sed -n '/panicked at/,/^note:/p; /^==.*ERROR/,$p' "$target_dir/$target.log" | head -n 40 >&2
        echo "fuzz: $target: FOUND after $ms ms, log in $target_dir/$target.log; again with: $program $(find "$artifacts/$target" \
            -type f -newer "$program" | tail -n 1)" >&2
    fi
done
[ -z "$failed" ] || { echo "fuzz: failed:$failed" >&2; exit 1; }
