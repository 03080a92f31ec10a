#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# kubelet.sh DIR COMMAND...: runs the kubelet with its own view of six sysctls that it sets for the whole machine. In a mount
# namespace of its own: in the node's, these mounts would forbid pods with hostUsers: false.
set -eu
directory=$1
shift
mount --make-private /proc
fake() {
    echo "$2" >"$directory/${1##*/}"
    mount --bind "$directory/${1##*/}" "/proc/sys/$1"
}
fake vm/overcommit_memory 1
fake vm/panic_on_oom 0
fake kernel/panic 10
fake kernel/panic_on_oops 1
fake kernel/keys/root_maxkeys 1000000
fake kernel/keys/root_maxbytes 25000000
exec "$@"
