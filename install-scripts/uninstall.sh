#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Takes Waylay off a cluster: the agents, then what they put on each node, then the objects. Running it again goes on where
# it ended. Pods that run keep the rules that they have.
set -eu
export LC_ALL=C

usage() {
    cat <<'END'
usage: uninstall.sh [--namespace NAME] [--image REF] [--cni-conf-dir DIR] [--cni-bin-dir DIR] [--timeout SECONDS]
                    [--delete-namespace] [--dry-run]

Uses the command in KUBECTL, kubectl by default. On each Linux node one pod runs `install-cni uninstall`; it is let start
without an agent because of its name. Nodes where it fails are named: run node-cleanup.sh on them.

  --namespace NAME     istio-cni by default
  --image REF, --cni-conf-dir DIR, --cni-bin-dir DIR
                       taken from the DaemonSet; needed only when it is gone and they are not the defaults
  --timeout SECONDS    for the agents to end, and for all nodes; 180 by default
  --delete-namespace   the namespace too, with all that is in it; one that was gone and is made for this goes in any case
  --dry-run            say what would be done; the cluster is only read
  --help               this text

Exit status: 0 all clean, 1 something was left (said on stderr), 64 wrong usage.
END
}

namespace=istio-cni image='' conf_dir='' bin_dir='' timeout=180 delete_namespace='' dry_run=''
priority=''

say() { printf 'uninstall: %s\n' "$*" >&2; }
fail() {
    printf 'uninstall: error: %s\n' "$*" >&2
    exit 1
}
misuse() {
    printf 'uninstall: %s; see --help\n' "$*" >&2
    exit 64
}
kube() { ${KUBECTL:-kubectl} "$@"; }
# What changes the cluster.
change() {
    if [ -n "$dry_run" ]; then
        say "would run: kubectl $*"
    else
        kube "$@" >&2
    fi
}

while [ $# -gt 0 ]; do
    case $1 in
        --namespace | --image | --cni-conf-dir | --cni-bin-dir | --timeout)
            [ $# -ge 2 ] || misuse "$1 needs a value"
            case $2 in '' | *[!A-Za-z0-9._/:@-]*) misuse "$1: \"$2\" cannot be used" ;; esac
            ;;
    esac
    case $1 in
        --namespace) namespace=$2 && shift ;;
        --image) image=$2 && shift ;;
        --cni-conf-dir) conf_dir=$2 && shift ;;
        --cni-bin-dir) bin_dir=$2 && shift ;;
        --timeout)
            case $2 in *[!0-9]*) misuse "--timeout: \"$2\" is no number of seconds" ;; esac
            timeout=$2 && shift
            ;;
        --delete-namespace) delete_namespace=1 ;;
        --dry-run) dry_run=1 ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) misuse "unknown argument $1" ;;
    esac
    shift
done

cleanup_pod() { # NAME NODE
    cat <<END
apiVersion: v1
kind: Pod
metadata:
  name: $1
  namespace: $namespace
  labels:
    app.kubernetes.io/name: waylay-cleanup
    sidecar.istio.io/inject: "false"
spec:
  nodeName: $2
  restartPolicy: Never
  priorityClassName: "$priority"
  serviceAccountName: istio-cni
  automountServiceAccountToken: false
  enableServiceLinks: false
  tolerations:
    - operator: Exists
  securityContext:
    seccompProfile:
      type: RuntimeDefault
  containers:
    - name: install-cni
      image: $image
      command: [install-cni, uninstall]
      envFrom:
        - configMapRef:
            name: istio-cni-config
            optional: true
      env:
        - name: POD_NAMESPACE
          value: $namespace
      securityContext:
        runAsUser: 0
        runAsGroup: 0
        privileged: false
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
          add: [$capabilities]
      volumeMounts:
        - {name: cni-bin-dir, mountPath: /host/opt/cni/bin}
        - {name: cni-net-dir, mountPath: /host/etc/cni/net.d}
        - {name: cni-run-dir, mountPath: /var/run/istio-cni}
  volumes:
    - name: cni-bin-dir
      hostPath: {path: $bin_dir, type: DirectoryOrCreate}
    - name: cni-net-dir
      hostPath: {path: $conf_dir, type: DirectoryOrCreate}
    - name: cni-run-dir
      hostPath: {path: /var/run/istio-cni, type: DirectoryOrCreate}
END
}

from_daemonset() { # JSONPATH
    kube get daemonset istio-cni-node -n "$namespace" --ignore-not-found -o "jsonpath=$1" ||
        fail "the cluster cannot be asked"
}

# The DaemonSet is read before it goes: the nodes are cleaned with its image and its paths.
volume='{.spec.template.spec.volumes[?(@.name=="%s")].hostPath.path}'
container='{.spec.template.spec.containers[0].'
found=$(from_daemonset "$container"'image}')
image=${image:-${found:-localhost/waylay:0.1.0}}
# shellcheck disable=SC2059 # a format
found=$(from_daemonset "$(printf "$volume" cni-net-dir)")
conf_dir=${conf_dir:-${found:-/etc/cni/net.d}}
# shellcheck disable=SC2059 # a format
found=$(from_daemonset "$(printf "$volume" cni-bin-dir)")
bin_dir=${bin_dir:-${found:-/opt/cni/bin}}
# Root needs none for what belongs to root.
capabilities=''
case $(from_daemonset "$container"'securityContext.capabilities.add}') in *DAC_OVERRIDE*) capabilities=DAC_OVERRIDE ;; esac

# The agents end first: one that runs would put its entry back.
change delete daemonset istio-cni-node -n "$namespace" --ignore-not-found --wait=true --timeout="${timeout}s" ||
    fail "the DaemonSet cannot be deleted"
change wait pod -n "$namespace" -l k8s-app=istio-cni-node --for=delete --timeout="${timeout}s" ||
    fail "agents still run in namespace $namespace"

nodes=$(kube get nodes -l kubernetes.io/os=linux -o 'jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}') ||
    fail "the nodes cannot be listed"
change delete pod -n "$namespace" -l app.kubernetes.io/name=waylay-cleanup --ignore-not-found --wait=true
# The agents may have gone with all that the clean-up pods need, too: by Helm while they crashed, or with the namespace.
is_there() { # KIND NAME [ARGUMENT]...
    found=$(kube get "$@" --ignore-not-found -o name) || fail "the cluster cannot be asked"
    [ -n "$found" ]
}
if ! is_there namespace "$namespace"; then
    change create namespace "$namespace" || fail "namespace $namespace cannot be made"
    change label namespace "$namespace" pod-security.kubernetes.io/enforce=privileged app.kubernetes.io/name=waylay-cleanup
fi
# One that was made for this, now or by a run that failed, goes again.
made_by=$(kube get namespace "$namespace" --ignore-not-found -o 'jsonpath={.metadata.labels.app\.kubernetes\.io/name}') ||
    fail "the cluster cannot be asked"
if [ "$made_by" = waylay-cleanup ]; then delete_namespace=1; fi
# GKE admits pods of this priority only where a quota names it.
if is_there resourcequota istio-cni-resource-quota -n "$namespace"; then priority=system-node-critical; fi
is_there serviceaccount istio-cni -n "$namespace" || change create serviceaccount istio-cni -n "$namespace" ||
    fail "the clean-up pods' ServiceAccount cannot be made"
number=0
for node in $nodes; do
    number=$((number + 1))
    # The prefix is what lets it start without an agent.
    if [ -n "$dry_run" ]; then
        say "would run: install-cni uninstall of $image on node $node, in $conf_dir and $bin_dir"
    else
        cleanup_pod "istio-cni-node-cleanup-$number" "$node" | kube apply -f - >/dev/null || fail "no pod can be made on node $node"
    fi
done
[ -z "$dry_run" ] || nodes=''

# All nodes at once; one that is down holds up none of the others.
end=$(($(date +%s) + timeout)) left=$nodes
while [ -n "$left" ]; do
    phases=$(kube get pods -n "$namespace" -l app.kubernetes.io/name=waylay-cleanup -o 'jsonpath={range .items[*]}{.status.phase}{" "}{.spec.nodeName}{" "}{.metadata.name}{"\n"}{end}') ||
        fail "the clean-up pods cannot be listed"
    left=$(printf '%s\n' "$phases" | grep -Ev '^(Succeeded|Failed) ' || :)
    if [ -z "$left" ] || [ "$(date +%s)" -ge "$end" ]; then break; fi
    sleep 1
done
if [ -n "$nodes" ]; then
    failed=$(printf '%s\n' "$phases" | grep -v '^Succeeded ' || :)
    if [ -n "$failed" ]; then
        printf '%s\n' "$failed" | while read -r phase node pod; do
            say "node $node: clean-up pod $pod: $phase: $(kube logs "$pod" -n "$namespace" --tail=3 2>&1 | tr '\n' ' ')"
        done
        fail "these nodes are not clean; run node-cleanup.sh on them, or this script again. The other objects stay until then"
    fi
    say "clean: $number nodes"
fi

change delete pod -n "$namespace" -l app.kubernetes.io/name=waylay-cleanup --ignore-not-found
change delete -n "$namespace" --ignore-not-found serviceaccount/istio-cni configmap/istio-cni-config \
    resourcequota/istio-cni-resource-quota networkpolicy/istio-cni role/istio-cni-node rolebinding/istio-cni-node
# The last two are the Helm chart's.
change delete --ignore-not-found clusterrole/istio-cni clusterrolebinding/istio-cni clusterrole/istio-cni-events \
    clusterrolebinding/istio-cni-events
if [ -n "$delete_namespace" ]; then change delete namespace "$namespace" --ignore-not-found; fi
say "done"
