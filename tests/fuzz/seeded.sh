#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Does the fuzzing find anything? Plants a defect in every target and requires that each is found within 10 s, that is all
# of them in the minute that CI spends (see run.sh), from the committed corpus alone.
#
# Usage: seeded.sh [TARGET...]

set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -gt 0 ] || set -- cni_stdin cni_args conflist annotations agent_frame netlink_reply

FUZZ_TARGET_DIR=${FUZZ_TARGET_DIR:-$here/target}
FUZZ_FEATURES=seeded-bug
FUZZ_WORK=$(mktemp -d)
export FUZZ_TARGET_DIR FUZZ_FEATURES FUZZ_WORK
trap 'rm -rf "$FUZZ_WORK"' EXIT

FUZZ_BUILD_ONLY=1 "$here/run.sh" 0
missed=
for target; do
    # The run fails when it finds something, and then that must be ours.
    if ! said=$("$here/run.sh" 10 "$target" 2>&1) && grep -qx seeded "$FUZZ_TARGET_DIR/$target.log"; then
        echo "$said" | sed -n 's/^fuzz: \([a-z_]*\): FOUND after \([0-9]*\) ms.*/seeded: \1: found after \2 ms/p'
    else
        missed="$missed $target"
        echo "$said" >&2
        echo "seeded: $target: missed what was planted" >&2
    fi
done
rm -rf "$FUZZ_TARGET_DIR/artifacts-$FUZZ_FEATURES"
[ -z "$missed" ]
