#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Runs tests on Debian's kernel, in a virtual machine without hardware support (qemu's TCG), from an initramfs made here.
# Nothing is installed: the kernel package is unpacked below the target directory.
#
# Usage: run.sh ci|all
#
# ci: every row of the matrix in both forms, agent and plugin, and these also with IPv6 switched off at boot.
# all: also the IPv4 rows without IPv6, generated packets, each rule missing once, all of agent and plugin: 25 minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."
what=${1:?usage: run.sh ci|all}

MUSL=x86_64-unknown-linux-musl
META=linux-image-cloud-amd64
target=${CARGO_TARGET_DIR:-$PWD/target}
cache=$target/kernel
begin=$SECONDS
mkdir -p "$cache"
work=$(mktemp -d "$cache/work.XXXXXX")
trap 'rm -rf "$work"' EXIT

say() { printf 'test-kernel: %s\n' "$*"; }

# What Debian's mirrors have today: they delete older versions.
kernel() {
    local package version
    package=$(apt-cache depends "$META" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
    if [[ -z $package ]]; then
        apt-get update -qq
        package=$(apt-cache depends "$META" | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
    fi
    [[ -n $package ]] || { say "no package $META"; exit 1; }
    version=$(apt-cache policy "$package" | sed -n 's/^ *Candidate: //p')
    tree=$cache/${package}_${version//:/_}
    if [[ ! -d $tree ]]; then
        say "$package $version"
        # A version that went from the mirrors since: look again.
        (cd "$work" && { apt-get download -qq "$package" 2>/dev/null || { apt-get update -qq && apt-get download -qq "$package"; }; })
        dpkg-deb -x "$work/$package"_*.deb "$work/tree"
        mv "$work/tree" "$tree"
    fi
    release=${package#linux-image-}
}

build() {
    cargo build --quiet --locked --profile plugin -p cni-plugin --target $MUSL
    cargo build --quiet --locked --release -p node-agent --target $MUSL
    cargo test --locked --no-run -p waylay-tests --test packets --test plugin_agent --target $MUSL \
        --message-format json 2>"$work/cargo.log" >"$work/cargo.json" || { cat "$work/cargo.log"; exit 1; }
}

# Copy a program with the libraries that it is linked with.
program() {
    local file
    while read -r file; do install -D "$file" "$root$file"; done < <(
        echo "$1"
        ldd "$1" | grep -o '/[^ ]*'
    )
}

# Modules are loaded by the kernel as on a node: it runs modprobe for what is asked of it.
initramfs() {
    root=$work/root
    local modules=lib/modules/$release name file
    mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp} "$root/$modules/kernel/drivers" "$root/built/$MUSL/"{plugin,release}
    install /bin/busybox "$root/bin/"
    for name in sh mount uname poweroff; do ln -s busybox "$root/bin/$name"; done
    ln -s ../bin/busybox "$root/sbin/modprobe"
    cp -a "$tree/$modules"/modules.* "$root/$modules/"
    cp -a "$tree/$modules/kernel"/{net,lib,crypto,arch} "$root/$modules/kernel/"
    cp -a "$tree/$modules/kernel/drivers/net" "$root/$modules/kernel/drivers/"
    busybox depmod -b "$root" "$release"
    for name in nft ip; do program "$(command -v $name)"; done
    cp "$target/$MUSL/plugin/istio-cni" "$root/built/$MUSL/plugin/"
    cp "$target/$MUSL/release/install-cni" "$root/built/$MUSL/release/"
    while read -r file; do
        name=$(basename "$file")
        strip -o "$root/${name%-*}" "$file"
    done < <(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' "$work/cargo.json")
    [[ -x $root/packets && -x $root/plugin_agent ]] || { say "the tests were not built"; exit 1; }
    install tests/kernel/init "$root/init"
    (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1 >"$work/base")
}

# boot NAME DEADLINE KERNEL-OPTIONS, with the job on stdin. A kernel that panics ends the machine: no reboot.
boot() {
    local name=$1 deadline=$2 options=$3 start=$SECONDS status=0
    mkdir "$work/$name"
    cat >"$work/$name/job"
    # The kernel unpacks one archive after the other.
    { cat "$work/base"; (cd "$work/$name" && echo job | cpio -o -H newc --quiet | gzip); } >"$work/$name.initrd"
    timeout "$deadline" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 2048 -nodefaults -no-user-config \
        -display none -monitor none -no-reboot -kernel "$tree/boot/vmlinuz-$release" -initrd "$work/$name.initrd" \
        -append "console=ttyS0 panic=-1 loglevel=4 $options" \
        -serial "file:$work/$name.console" -serial "file:$work/$name.raw" </dev/null || status=$?
    tr -d '\r' <"$work/$name.raw" >"$work/$name.log"
    grep -E '^guest: (kernel|no IPv6)|: [0-9]+ run, ' "$work/$name.log" | sed "s/^\(test .* \.\.\. \)\?/  $name: /" || true
    local jobs failures=()
    jobs=$(wc -l <"$work/$name/job")
    ((status == 0)) || failures+=("qemu ended with status $status after $((SECONDS - start)) s (124 is the deadline)")
    [[ $(tail -n 1 "$work/$name.log") == "guest: done" ]] || failures+=("the guest did not come to its end")
    [[ $(grep -c '^guest: status 0: ' "$work/$name.log") == "$jobs" ]] || failures+=("not every program succeeded")
    # A filter that fits no test is a success for the test program.
    [[ $(grep -c '^test result: ok\. [1-9]' "$work/$name.log") == "$jobs" ]] || failures+=("a program ran no test or failed")
    [[ $options != *ipv6.disable=1* ]] || grep -q '^guest: no IPv6' "$work/$name.log" || failures+=("IPv6 is on")
    ! grep -qE 'Oops|BUG:|Kernel panic|WARNING: CPU' "$work/$name.console" || failures+=("the kernel complains")
    say "$name: $((SECONDS - start)) s"
    if ((${#failures[@]})); then
        cat "$work/$name.console" "$work/$name.log"
        printf "test-kernel: $name: FAILED: %s\n" "${failures[@]}"
        failed_boots=$((failed_boots + 1))
    fi
}

kernel
build
initramfs
say "built in $((SECONDS - begin)) s"
failed_boots=0
boot both-families 400 "" <<'JOB'
/packets --nocapture --test-threads 1 every_row_of_the_matrix
/plugin_agent --test-threads 1 add_programs changed_annotations check_ a_pod_without_ipv6
JOB
boot without-ipv6 200 ipv6.disable=1 <<'JOB'
/plugin_agent a_pod_without_ipv6
JOB
if [[ $what == all ]]; then
    boot all-without-ipv6 400 ipv6.disable=1 <<'JOB'
/packets --nocapture every_ipv4_row
JOB
    boot all-packets 5400 "" <<'JOB'
/packets --nocapture --test-threads 1 compiled_rules generated_packets without_any_single
JOB
    boot all-agent 900 "" <<'JOB'
/plugin_agent --test-threads 1
JOB
fi
sed 's/;//g' "$work"/*.log | awk -v release="$release" -v boots="$failed_boots" -v seconds="$((SECONDS - begin))" '
    /^test result: / { passed += $4; failed += $6 }
    END {
        if (boots && !failed) failed = boots
        printf "kernel %s: %d passed, %d failed, in %d s\n", release, passed, failed, seconds
        exit failed || boots || !passed
    }'
