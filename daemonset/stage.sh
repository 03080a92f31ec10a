#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# stage.sh ROOT ARCHITECTURE=TARGET...: the files of the image, one directory for each architecture, out of what cargo built
# below CARGO_TARGET_DIR. ROOT is made anew.
set -eu
cd "$(dirname "$0")/.."
root=$1
shift
# Nothing but what this script makes is ever removed.
if [ -e "$root" ] && [ ! -e "$root/.staged" ]; then
    echo "stage.sh: $root exists and was not made by this script" >&2
    exit 1
fi
rm -rf "$root"
mkdir -p "$root"
: >"$root/.staged"
for pair in "$@"; do
    target=${pair#*=}
    into=$root/${pair%%=*}
    mkdir -p "$into/opt/cni/bin" "$into/usr/local/bin" "$into/licenses"
    cp "${CARGO_TARGET_DIR:-target}/$target/plugin/istio-cni" "$into/opt/cni/bin/istio-cni"
    cp "${CARGO_TARGET_DIR:-target}/$target/release/install-cni" "$into/usr/local/bin/install-cni"
    cp LICENSE "$into/licenses/LICENSE"
    daemonset/notice.py "$into/licenses/NOTICE" "$target"
done
