#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The programs for arm64, run under qemu-user, against the ones for this machine: the same calls give the same bytes.
# Needs `make build build-arm64`. What needs a real kernel of that architecture (rules, sockets) is not proven here.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
run_dir=$(mktemp -d)
trap 'rm -rf "$run_dir"' EXIT
checks=0

plugin() { # ARCHITECTURE: the program and what starts it
    case $1 in
        arm64) echo "qemu-aarch64-static $target/aarch64-unknown-linux-musl/plugin/istio-cni" ;;
        amd64) echo "$target/x86_64-unknown-linux-musl/plugin/istio-cni" ;;
    esac
}

call() { # ARCHITECTURE VERB NAMESPACE STDIN: exit status and stdout, as one text
    local status=0 out
    # shellcheck disable=SC2046 # two words
    out=$(env -i CNI_COMMAND="$2" CNI_CONTAINERID=c1 CNI_NETNS=/var/run/netns/none CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \
        CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=$3;K8S_POD_NAME=web" PATH="$PATH" \
        $(plugin "$1") <<<"$4" 2>/dev/null) || status=$?
    printf 'exit %d: %s\n' "$status" "$out"
}

same() { # EXPECTED-PATTERN VERB NAMESPACE STDIN
    local expected=$1 ours theirs
    shift
    ours=$(call arm64 "$@")
    theirs=$(call amd64 "$@")
    # shellcheck disable=SC2053 # a pattern
    if [[ $ours == "$theirs" && $ours == $expected ]]; then
        checks=$((checks + 1))
    else
        printf 'arm64: %s %s\n  wanted: %s\n  arm64:  %s\n  amd64:  %s\n' "$1" "$2" "$expected" "$ours" "$theirs" >&2
        exit 1
    fi
}

config() { # VERSION PREVRESULT
    printf '{"cniVersion":"%s","name":"net","type":"istio-cni","exclude_namespaces":["kube-system"],' "$1"
    printf '"cni_agent_run_dir":"%s","agent_deadline_seconds":1%s}' "$run_dir" "$2"
}

previous='{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.7/24"},{"address":"fd00::7/64"}],"x-other":1.50}'

same 'exit 0: {"cniVersion":*"0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"*' VERSION x ''
same "exit 0: *10.0.0.7/24*1.50*" ADD kube-system "$(config 1.0.0 ",\"prevResult\":$previous")"
same 'exit 0: {"cniVersion":*"0.3.1"*' ADD kube-system "$(config 0.3.1 '')"
same 'exit 0: ' DEL kube-system "$(config 1.0.0 '')"
same 'exit 0: ' CHECK kube-system "$(config 1.0.0 '')"
same 'exit 0: ' STATUS kube-system "$(config 1.1.0 '')"
same 'exit 1: *"code":*7*' ADD kube-system '{"cniVersion":"1.0.0"}'
same 'exit 1: *"code":*6*' ADD kube-system 'nothing'
# A pod that is not excluded is refused: there is no such network namespace.
same 'exit 1: *"code":*/var/run/netns/none*' ADD default "$(config 1.0.0 '')"

version=$(qemu-aarch64-static "$target/aarch64-unknown-linux-musl/release/install-cni" --version)
[[ $version == "install-cni "* ]]
echo "arm64: $checks calls of the plugin answered as on amd64; $version starts"
