#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Whether Waylay will work: on a node, or, with --cluster, as far as the Kubernetes API tells. Changes nothing.
set -u
export LC_ALL=C

usage() {
    cat <<'END'
usage: preflight.sh [--agent FILE] [--root DIR] [--cni-conf-dir DIR] [--cni-bin-dir DIR] [--run-dir DIR]
       preflight.sh --cluster [--namespace NAME]

On a node: kernel, container runtime and its directories, other network software that gets in the way. With --cluster: the
same as far as the API tells, for all nodes; uses the command in KUBECTL, kubectl by default.

  --agent FILE        the program install-cni: it asks the running kernel for every kind of rule that it will write.
                      Needs root. Without it, version and modules are looked at
  --root DIR          the node's root directory, / by default
  --cni-conf-dir DIR  below the root; /etc/cni/net.d by default
  --cni-bin-dir DIR   below the root; /opt/cni/bin by default
  --run-dir DIR       below the root; /var/run/istio-cni by default
  --namespace NAME    where Waylay is or will be; istio-cni by default
  --dry-run           accepted: a preflight changes nothing anyway
  --help              this text

Prints one line for each finding: "ok", "warning" (works, with a limit that is named) or "error" (will not work).
Exit status: 0 no error, 1 errors, 64 wrong usage.
END
}

root='' conf_dir=/etc/cni/net.d bin_dir=/opt/cni/bin run_dir=/var/run/istio-cni agent='' cluster='' namespace=istio-cni
errors=0 warnings=0

ok() { printf 'ok: %s\n' "$*"; }
warning() {
    printf 'warning: %s\n' "$*"
    warnings=$((warnings + 1))
}
error() {
    printf 'error: %s\n' "$*"
    errors=$((errors + 1))
}
misuse() {
    printf 'preflight: %s; see --help\n' "$*" >&2
    exit 64
}

while [ $# -gt 0 ]; do
    case $1 in
        --agent | --root | --cni-conf-dir | --cni-bin-dir | --run-dir | --namespace)
            [ $# -ge 2 ] || misuse "$1 needs a value"
            ;;
    esac
    case $1 in
        --agent) agent=$2 && shift ;;
        --root) root=${2%/} && shift ;;
        --cni-conf-dir) conf_dir=$2 && shift ;;
        --cni-bin-dir) bin_dir=$2 && shift ;;
        --run-dir) run_dir=$2 && shift ;;
        --namespace) namespace=$2 && shift ;;
        --cluster) cluster=1 ;;
        --dry-run) ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) misuse "unknown argument $1" ;;
    esac
    shift
done

# --- kernel

# RELEASE WHERE: by version only. 4.19 is the first with nft_tproxy; 6.1 is the oldest that the tests run on.
kernel_version() {
    major=${1%%.*}
    rest=${1#*.}
    minor=${rest%%[!0-9]*}
    case $major$minor in
        *[!0-9]* | '') warning "$2: kernel $1: a version that this script does not understand" && return ;;
    esac
    if [ "$major" -lt 4 ] || { [ "$major" -eq 4 ] && [ "$minor" -lt 19 ]; }; then
        error "$2: kernel $1 is older than 4.19 and lacks what the rules need"
    elif [ "$major" -lt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -lt 1 ]; }; then
        warning "$2: kernel $1 is older than the oldest that Waylay is tested on, 6.1"
    else
        ok "$2: kernel $1"
    fi
}

# The agent takes its socket only after the kernel has accepted every kind of rule in a transaction that is thrown away.
kernel_probe() {
    [ -x "$agent" ] || { error "$agent: no program that can be run" && return; }
    scratch=$(mktemp -d) || { error "no temporary directory" && return; }
    mkdir "$scratch/pods" "$scratch/run" "$scratch/net.d" "$scratch/bin"
    # Ports off, and every directory is the scratch one: nothing of the node is touched.
    CNI_ENABLE_INSTALL=false MONITORING_PORT=0 HEALTH_PORT=0 CNI_AGENT_RUN_DIR=$scratch/run POD_MANIFEST_DIR=$scratch/pods \
        MOUNTED_CNI_NET_DIR=$scratch/net.d MOUNTED_CNI_BIN_DIR=$scratch/bin \
        "$agent" >"$scratch/log" 2>&1 &
    probe=$!
    trap 'kill "$probe" 2>/dev/null; rm -rf "$scratch"; exit 1' HUP INT TERM
    tries=0
    while [ "$tries" -lt 100 ] && [ ! -S "$scratch/run/waylay.sock" ] && kill -0 "$probe" 2>/dev/null; do
        sleep 0.1 2>/dev/null || sleep 1
        tries=$((tries + 1))
        # It says once why not, and goes on trying.
        if grep -q 'cannot serve the plugin' "$scratch/log"; then break; fi
    done
    if [ -S "$scratch/run/waylay.sock" ]; then
        ok "kernel $(uname -r): accepts every kind of rule (asked by the agent itself)"
    else
        error "kernel $(uname -r): the agent's own probe failed: $(tail -n 1 "$scratch/log")"
    fi
    kill "$probe" 2>/dev/null
    wait "$probe" 2>/dev/null
    trap - HUP INT TERM
    rm -rf "$scratch"
}

# A feature is there when it is built in, loaded, or a module can be loaded. MODULE CONFIG-OPTION
kernel_feature() {
    for list in "$modules/modules.builtin" "$modules/modules.dep"; do
        if [ -r "$list" ] && grep -q "/$1\.ko" "$list"; then return 0; fi
    done
    if [ -r "$root/proc/modules" ] && grep -q "^$1 " "$root/proc/modules"; then return 0; fi
    [ -r "$root/boot/config-$release" ] && grep -q "^$2=[ym]" "$root/boot/config-$release"
}

kernel_modules() {
    release=$(cat "$root/proc/sys/kernel/osrelease" 2>/dev/null) || release=''
    if [ -z "$release" ]; then
        error "kernel: $root/proc/sys/kernel/osrelease cannot be read"
        return
    fi
    kernel_version "$release" node
    modules=$root/lib/modules/$release
    if [ ! -r "$modules/modules.dep" ] && [ ! -r "$root/boot/config-$release" ]; then
        warning "kernel $release: neither its modules nor its configuration can be read; use --agent to ask the kernel itself"
        return
    fi
    missing=''
    for pair in nf_tables:CONFIG_NF_TABLES nft_chain_nat:CONFIG_NFT_NAT nft_redir:CONFIG_NFT_REDIR nft_ct:CONFIG_NFT_CT; do
        kernel_feature "${pair%:*}" "${pair#*:}" || missing="$missing ${pair%:*}"
    done
    if [ -n "$missing" ]; then
        error "kernel $release: missing:$missing"
    else
        ok "kernel $release: nf_tables with NAT and redirection"
    fi
    missing=''
    for pair in nft_tproxy:CONFIG_NFT_TPROXY nft_socket:CONFIG_NFT_SOCKET; do
        kernel_feature "${pair%:*}" "${pair#*:}" || missing="$missing ${pair%:*}"
    done
    [ -z "$missing" ] || warning "kernel $release: missing:$missing; pods with interceptionMode TPROXY will not start"
}

# --- runtime and its directories

# The values of KEY in a TOML file, one a line: enough of TOML for the files that runtimes have.
toml() { # FILE KEY
    sed -n "s/^[[:space:]]*$2[[:space:]]*=[[:space:]]*//p" "$1" | tr -d '[]"'"'" | tr ',' '\n' |
        sed 's/^[[:space:]]*//; s/[[:space:]]*$//; s|\(.\)/$|\1|; /^$/d'
}

runtime_uses() { # RUNTIME FILE CONF-KEY BIN-KEYS
    found=$(toml "$2" "$3" | head -n 1)
    if [ -n "$found" ] && [ "$found" != "$conf_dir" ]; then
        error "$1 reads its CNI configuration from $found ($2) and Waylay would write $conf_dir: use --cni-conf-dir"
    else
        ok "$1: CNI configuration in ${found:-$conf_dir}"
    fi
    found=$(for key in $4; do toml "$2" "$key"; done)
    if [ -n "$found" ] && ! printf '%s\n' "$found" | grep -qxF "$bin_dir"; then
        error "$1 looks for CNI plugins in $(printf '%s\n' "$found" | tr '\n' ' ')($2) and Waylay would install into $bin_dir: use --cni-bin-dir"
    fi
}

runtimes() {
    seen=''
    for file in "$root/etc/containerd/config.toml" "$root"/etc/containerd/conf.d/*.toml; do
        if [ -r "$file" ]; then
            seen=1
            runtime_uses containerd "$file" conf_dir 'bin_dir bin_dirs'
            if grep -Eq 'runsc|gvisor' "$file"; then sandboxes="${sandboxes}gVisor "; fi
            if grep -q 'kata' "$file"; then sandboxes="${sandboxes}Kata "; fi
        fi
    done
    for file in "$root/etc/crio/crio.conf" "$root"/etc/crio/crio.conf.d/*; do
        if [ -r "$file" ]; then
            seen=1
            runtime_uses CRI-O "$file" network_dir plugin_dirs
            if grep -Eq 'runsc|gvisor' "$file"; then sandboxes="${sandboxes}gVisor "; fi
            if grep -q 'kata' "$file"; then sandboxes="${sandboxes}Kata "; fi
        fi
    done
    # Runtimes that come inside a distribution have directories of their own.
    for pair in k3s:/var/lib/rancher/k3s/agent/etc/cni/net.d MicroK8s:/var/snap/microk8s/current/args/cni-network; do
        if [ -d "$root${pair#*:}" ]; then
            seen=1
            if [ "${pair#*:}" = "$conf_dir" ]; then
                ok "${pair%%:*}: CNI configuration in $conf_dir"
            else
                error "${pair%%:*} reads its CNI configuration from ${pair#*:} and Waylay would write $conf_dir: use --cni-conf-dir"
            fi
        fi
    done
    [ -n "$seen" ] || warning "no configuration of containerd, CRI-O, k3s or MicroK8s found: their defaults are assumed"
    [ -z "$sandboxes" ] || sandbox_warning "$sandboxes" "this node's runtime"
}

sandbox_warning() { # WHICH WHERE
    warning "$2 has ${1% }: pods in such a sandbox have a network stack of their own, which the rules in the pod's network namespace do not reach; mesh pods must not use it"
}

directories() {
    for directory in "$conf_dir" "$bin_dir" "$run_dir"; do
        path=$root$directory
        if [ ! -e "$path" ]; then
            ok "$directory: will be made"
        elif [ ! -d "$path" ]; then
            error "$directory: not a directory"
        elif [ ! -w "$path" ]; then
            error "$directory: cannot be written (a read-only file system?)"
        else
            # shellcheck disable=SC2012 # stat(1) is not POSIX
            owner=$(ls -ldnL "$path" | awk '{ print $3 }')
            if [ "$owner" -ne 0 ]; then
                warning "$directory: belongs to uid $owner: the agent needs CAP_DAC_OVERRIDE too (install.sh --dac-override, overlays/foreign-owner)"
            fi
        fi
    done
    primary=''
    for file in "$root$conf_dir"/*; do
        case $file in *.conf | *.conflist | *.json) ;; *) continue ;; esac
        if [ ! -s "$file" ]; then
            error "$conf_dir/${file##*/}: empty; containerd loads no network while a broken file sorts first"
        elif [ -z "$primary" ]; then
            primary=${file##*/}
            ok "$conf_dir/$primary: the network that pods get, and the file to chain into"
        fi
        if grep -q '"istio-cni"' "$file"; then
            ok "$conf_dir/${file##*/}: has an istio-cni entry already, which will be taken over"
        fi
    done
    [ -n "$primary" ] || warning "$conf_dir: no network configured yet; the agent waits for one and is not ready until then"
    if [ -L "$root$bin_dir" ]; then
        warning "$bin_dir: a symbolic link; if an upgrade of the node changes it, the plugin is gone until the agent is restarted"
    fi
}

# --- conflicts, by name

conflicts_on_node() {
    for file in "$root$conf_dir"/*.cilium_bak; do
        [ -e "$file" ] || continue
        error "Cilium: cni-exclusive is on and has renamed ${file##*/}; set cni.exclusive=false in its Helm values"
        return
    done
    for file in "$root$conf_dir"/*; do
        case ${file##*/} in
            *cilium*.conf*) warning "Cilium: needs cni.exclusive=false, and socketLB.hostNamespaceOnly=true where it replaces kube-proxy; preflight.sh --cluster looks" ;;
            *calico*.conf* | *canal*.conf*) ok "Calico: with its eBPF data plane, connect-time load balancing must be off; preflight.sh --cluster looks" ;;
            *-aws.conf*) ok "AWS VPC CNI: with security groups for pods the enforcing mode must be standard; preflight.sh --cluster looks" ;;
        esac
    done
}

kube() { ${KUBECTL:-kubectl} "$@"; }

# One value out of the API into $answer; an object that is not there is an empty one.
ask() {
    if ! answer=$(kube get "$@" --ignore-not-found 2>&1); then
        error "kubectl get $1 $2: $answer"
        answer=''
        return 1
    fi
}

cluster_nodes() {
    ask nodes -o 'jsonpath={range .items[*]}{.metadata.name}{" "}{.status.nodeInfo.operatingSystem}{" "}{.status.nodeInfo.architecture}{" "}{.status.nodeInfo.kernelVersion}{" "}{.status.nodeInfo.containerRuntimeVersion}{"\n"}{end}' || return
    [ -n "$answer" ] || { error "the cluster has no nodes" && return; }
    while read -r name system architecture release runtime; do
        [ "$system" = linux ] || continue
        kernel_version "$release" "node $name"
        case $architecture in
            amd64 | arm64) ;;
            *) error "node $name: architecture $architecture: the image has amd64 and arm64" ;;
        esac
        case $runtime in
            containerd://* | cri-o://*) ;;
            *) warning "node $name: runtime $runtime: Waylay is made for containerd and CRI-O" ;;
        esac
    done <<END
$answer
END
}

cluster_cilium() {
    ask configmap cilium-config -n kube-system -o 'jsonpath={.metadata.name}/{.data.cni-exclusive}/{.data.kube-proxy-replacement}/{.data.bpf-lb-sock}/{.data.bpf-lb-sock-hostns-only}' || return
    case $answer in '' | /*) return ;; esac
    IFS=/ read -r _ exclusive replacement lb hostns <<END
$answer
END
    if [ "$exclusive" = false ]; then
        ok "Cilium: cni-exclusive is off"
    else
        error "Cilium: cni-exclusive is ${exclusive:-on by default} and undoes our entry; set cni.exclusive=false in its Helm values"
    fi
    case $replacement/$lb in
        true/* | strict/* | partial/* | */true)
            if [ "$hostns" = true ]; then
                ok "Cilium: socketLB.hostNamespaceOnly is on"
            else
                error "Cilium: it balances services in the pod's sockets, so that the rules see no service address; set socketLB.hostNamespaceOnly=true"
            fi
            ;;
    esac
}

cluster_calico() {
    ask customresourcedefinition felixconfigurations.crd.projectcalico.org -o name || return
    [ -n "$answer" ] || return
    ask felixconfigurations.crd.projectcalico.org default -o 'jsonpath={.spec.bpfEnabled}/{.spec.bpfConnectTimeLoadBalancing}/{.spec.bpfConnectTimeLoadBalancingEnabled}' || return
    case $answer in
        true/Disabled/* | true//false) ok "Calico: eBPF with connect-time load balancing off" ;;
        true/*) error "Calico: eBPF with connect-time load balancing, so that the rules see no service address; set bpfConnectTimeLoadBalancing: Disabled in FelixConfiguration default" ;;
        *) ok "Calico: no eBPF data plane" ;;
    esac
}

cluster_aws() {
    ask daemonset aws-node -n kube-system -o 'jsonpath={range .spec.template.spec.containers[*].env[*]}{.name}={.value}{"\n"}{end}' || return
    case $answer in
        *ENABLE_POD_ENI=true*)
            case $answer in
                *POD_SECURITY_GROUP_ENFORCING_MODE=standard*) ok "AWS VPC CNI: security groups for pods in standard mode" ;;
                *) error "AWS VPC CNI: security groups for pods in strict mode, in which traffic does not pass the pod's rules as expected; set POD_SECURITY_GROUP_ENFORCING_MODE=standard on aws-node" ;;
            esac
            ;;
    esac
}

cluster_sandboxes() {
    ask runtimeclasses -o 'jsonpath={range .items[*]}{.metadata.name}{" "}{.handler}{"\n"}{end}' || return
    while read -r name handler; do
        case $name/$handler in
            *gvisor* | *runsc*) sandbox_warning gVisor "RuntimeClass $name" ;;
            *kata*) sandbox_warning Kata "RuntimeClass $name" ;;
        esac
    done <<END
$answer
END
}

cluster_others() {
    ask daemonsets -A -l k8s-app=istio-cni-node -o 'jsonpath={range .items[*]}{.metadata.namespace}{" "}{.metadata.labels.app\.kubernetes\.io/managed-by}{" "}{.metadata.name}{"\n"}{end}' || return
    while read -r where rest; do
        if [ -z "$where" ]; then continue; fi
        case $where/$rest in
            "$namespace"/*Helm* | "$namespace"/*operator*) error "namespace $where has an istio-cni-node of ${rest% *}: change its image, or remove it first" ;;
            "$namespace"/*) ok "namespace $where: istio-cni-node is there and will be updated" ;;
            *) error "namespace $where has an istio-cni-node too: two agents on a node fight over its CNI configuration" ;;
        esac
    done <<END
$answer
END
}

sandboxes=''
if [ -n "$cluster" ]; then
    if ! kube version >/dev/null 2>&1; then
        error "the cluster cannot be reached with ${KUBECTL:-kubectl}: $(kube version 2>&1 | tail -n 1)"
    else
        cluster_nodes
        cluster_cilium
        cluster_calico
        cluster_aws
        cluster_sandboxes
        cluster_others
    fi
else
    if [ -n "$agent" ]; then kernel_probe; else kernel_modules; fi
    runtimes
    directories
    conflicts_on_node
fi

printf 'preflight: %d errors, %d warnings\n' "$errors" "$warnings"
[ "$errors" -eq 0 ]
