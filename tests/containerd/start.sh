#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# start.sh DIRECTORY: containerd as first process but one of a mount and process namespace, configured by
# DIRECTORY/config.toml, with the images of DIRECTORY/image.tar. It prints "ready". All that it writes outside
# DIRECTORY is on file systems that end with the namespace.
set -euo pipefail

dir=$1
# Paths that are compiled into containerd, its shims, runc and the CNI libraries are below these two.
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
containerd --config "$dir/config.toml" &
ctr() { command ctr --address "$dir/containerd.sock" --namespace k8s.io "$@"; }
until ctr version >/dev/null 2>&1; do
    kill -0 %1 # or give up
    sleep 0.05
done
ctr images import "$dir/image.tar"
echo ready
wait
