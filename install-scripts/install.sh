#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Puts Waylay on all nodes of a cluster: preflight, apply, wait, and proof with a canary pod. Running it again updates.
set -eu
export LC_ALL=C

usage() {
    cat <<'END'
usage: install.sh [--image REF] [--namespace NAME] [--cni-conf-dir DIR] [--cni-bin-dir DIR] [--dac-override] [--selinux]
                  [--timeout SECONDS] [--canary-namespace NAME] [--no-canary] [--skip-preflight]
                  [--dry-run]

Uses the command in KUBECTL, kubectl by default (for example KUBECTL="kubectl --context test").

  --image REF              image to install; localhost/waylay:<version> by default, as `make image` names it
  --namespace NAME         istio-cni by default
  --cni-conf-dir DIR       the nodes' CNI configuration, /etc/cni/net.d by default
  --cni-bin-dir DIR        the nodes' CNI plugins, /opt/cni/bin by default
  --dac-override           the nodes' directories belong to another user than root
  --selinux                the nodes enforce SELinux: run the agent as spc_t
  --timeout SECONDS        for the rollout, and for the canary; 180 by default
  --canary-namespace NAME  one that is not excluded; default by default
  --no-canary              do not start a pod to prove that pods start and reach the plugin
  --skip-preflight         install whatever preflight.sh would say
  --dry-run                print the objects and what would be done; the cluster is only read
  --help                   this text

Exit status: 0 installed and proven, 1 not (said on stderr), 64 wrong usage.
END
}

here=$(cd "$(dirname "$0")" && pwd)
base=$here/../daemonset/base
image='' namespace=istio-cni conf_dir=/etc/cni/net.d bin_dir=/opt/cni/bin dac_override='' selinux='' timeout=180
canary=1 canary_namespace=default preflight=1 dry_run=''

say() { printf 'install: %s\n' "$*" >&2; }
fail() {
    printf 'install: error: %s\n' "$*" >&2
    exit 1
}
misuse() {
    printf 'install: %s; see --help\n' "$*" >&2
    exit 64
}
kube() { ${KUBECTL:-kubectl} "$@"; }

while [ $# -gt 0 ]; do
    case $1 in
        --image | --namespace | --cni-conf-dir | --cni-bin-dir | --timeout | --canary-namespace)
            [ $# -ge 2 ] || misuse "$1 needs a value"
            # They become part of YAML.
            case $2 in '' | *[!A-Za-z0-9._/:@-]*) misuse "$1: \"$2\" cannot be used" ;; esac
            ;;
    esac
    case $1 in
        --image) image=$2 && shift ;;
        --namespace) namespace=$2 && shift ;;
        --cni-conf-dir) conf_dir=$2 && shift ;;
        --cni-bin-dir) bin_dir=$2 && shift ;;
        --timeout)
            case $2 in *[!0-9]*) misuse "--timeout: \"$2\" is no number of seconds" ;; esac
            timeout=$2 && shift
            ;;
        --canary-namespace) canary_namespace=$2 && shift ;;
        --no-canary) canary='' ;;
        --dac-override) dac_override=1 ;;
        --selinux) selinux=1 ;;
        --skip-preflight) preflight='' ;;
        --dry-run) dry_run=1 ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) misuse "unknown argument $1" ;;
    esac
    shift
done

# The base with what was asked for in its place. Each line of the base that is changed here is known exactly.
render() { # FILE
    sed -e "s|image: localhost/waylay:.*|image: ${image:-&}|" -e "s|image: image: |image: |" \
        -e "s|namespace: istio-cni\$|namespace: $namespace|" \
        -e "/^kind: Namespace/,\$s|name: istio-cni\$|name: $namespace|" \
        -e "s|{path: /etc/cni/net.d, |{path: $conf_dir, |" \
        -e "s|{path: /opt/cni/bin, |{path: $bin_dir, |" \
        -e "s|add: \[NET_ADMIN\]|add: [NET_ADMIN${dac_override:+, DAC_OVERRIDE}]|" "$1" |
        awk -v selinux="$selinux" '
            { print }
            selinux && /readOnlyRootFilesystem: true/ { sub(/readOnly.*/, "seLinuxOptions: {type: spc_t}"); print }'
}

manifest() {
    # A namespace that is there stays as it is.
    if [ -z "$namespace_exists" ]; then
        render "$base/namespace.yaml"
        echo ---
    fi
    for name in serviceaccount clusterrole clusterrolebinding role rolebinding configmap resourcequota networkpolicy daemonset; do
        render "$base/$name.yaml"
        echo ---
    done
}

# It says its version and ends: the agent's own image is on the node already.
canary_pod() { # NAME NODE
    cat <<END
apiVersion: v1
kind: Pod
metadata:
  name: $1
  namespace: $canary_namespace
  labels:
    app.kubernetes.io/name: waylay-canary
    sidecar.istio.io/inject: "false"
spec:
  nodeName: $2
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  tolerations:
    - operator: Exists
  securityContext:
    runAsUser: 65534
    runAsNonRoot: true
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: canary
      image: $(sed -n 's/^ *image: //p' "$scratch/manifest.yaml")
      command: [install-cni, version]
      securityContext:
        allowPrivilegeEscalation: false
        capabilities:
          drop: [ALL]
END
}

# What is wrong, for a rollout that does not end.
report() {
    kube get pods -n "$namespace" -l k8s-app=istio-cni-node -o wide >&2 || :
    kube get events -n "$namespace" --field-selector type=Warning >&2 || :
    kube logs -n "$namespace" -l k8s-app=istio-cni-node --tail=20 --prefix >&2 || :
}

prove() {
    # One agent that is ready and stays, and its node: one that was told to end is ready for a while, too.
    kube get pods -n "$namespace" -l k8s-app=istio-cni-node -o 'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{" "}{.metadata.name}{" "}{.spec.nodeName}{" "}{.metadata.deletionTimestamp}{"\n"}{end}' >"$scratch/agents" ||
        fail "the agents' pods cannot be listed"
    read -r agent node <<END
$(sed -n 's/^True \([^ ]* [^ ]*\) *$/\1/p' "$scratch/agents" | head -n 1)
END
    [ -n "$agent" ] || fail "no agent is ready"
    name=waylay-canary-$$-$(date +%s)
    # Whatever happens, it goes; no canary is ever left.
    trap 'kube delete pod "$name" -n "$canary_namespace" --ignore-not-found --wait=false >/dev/null 2>&1; rm -rf "$scratch"' EXIT
    trap 'exit 1' HUP INT TERM
    say "canary: pod $canary_namespace/$name on node $node"
    canary_pod "$name" "$node" | kube apply -f - >/dev/null || fail "the canary cannot be made"
    if ! kube wait pod "$name" -n "$canary_namespace" --for=jsonpath='{.status.phase}'=Succeeded --timeout="${timeout}s" >/dev/null; then
        kube get events -n "$canary_namespace" --field-selector "involvedObject.name=$name" >&2 || :
        fail "the canary did not start on node $node"
    fi
    # The agent writes one line for each pod that the plugin was called for. The plugin does not wait for it.
    tries=0
    until kube logs "$agent" -n "$namespace" --since=10m >"$scratch/log" && grep -F "$name" "$scratch/log" | grep -q '"add"'; do
        tries=$((tries + 1))
        if [ "$tries" -ge 10 ]; then
            fail "the canary started on node $node, but the plugin was not called for it: is another CNI configuration in force there?"
        fi
        sleep 1
    done
    say "canary: started, and the agent on node $node saw it: $(grep -F "$name" "$scratch/log" | sed -n 's/.*reason[":=]*\([a-z_]*\).*/\1/p' | tail -n 1)"
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if [ -n "$preflight" ]; then
    "$here/preflight.sh" --cluster --namespace "$namespace" >&2 || fail "preflight found errors; nothing was changed (--skip-preflight installs all the same)"
fi
namespace_exists=$(kube get namespace "$namespace" --ignore-not-found -o name) || fail "the cluster cannot be asked"
manifest >"$scratch/manifest.yaml"
if [ -n "$dry_run" ]; then
    cat "$scratch/manifest.yaml"
    say "would apply this, wait for daemonset/istio-cni-node in namespace $namespace${canary:+ and start a canary}"
    exit 0
fi
kube apply -f "$scratch/manifest.yaml" >&2 || fail "the objects could not be applied"
say "waiting up to $timeout s for daemonset/istio-cni-node in namespace $namespace"
if ! kube rollout status daemonset/istio-cni-node -n "$namespace" --timeout="${timeout}s" >&2; then
    report
    fail "the agents did not become ready; pods that run are as before, and uninstall.sh takes everything back"
fi
if [ -n "$canary" ]; then prove; fi
say "installed"
