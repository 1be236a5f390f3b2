# copepod. `make help` explains every target; CI calls these targets and nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

TARGET   := $(or $(CARGO_TARGET_DIR),target)
BIN      := $(TARGET)/bin
HOST     := x86_64-unknown-linux-gnu
# The shim is static and non-PIE: a position-independent one dirties 200 KiB of relocations in every pod.
SHIM_RUSTFLAGS := -C target-feature=+crt-static -C relocation-model=static
KUBELET  := integration/kube/bin/kubelet
CLUSTER  := integration/cluster/bin
# Debian packages that building and testing need.
PACKAGES := build-essential pkg-config libseccomp-dev libseccomp2 busybox-static docker-registry \
	containernetworking-plugins runc crun iproute2 iptables procps util-linux nginx-light openssl \
	golang-github-containers-common curl jq mount e2fsprogs python3-venv libarchive-tools skopeo tinyproxy umoci
# Those that making and running the guest needs beside them.
VM_PACKAGES := debootstrap debian-archive-keyring e2fsprogs kmod qemu-system-x86 xz-utils zstd

.PHONY: help deps vm-deps vm-image vm test-vm test-vm-smoke test-vm-conformance test-vm-selinux test-vm-node test-vm-guide test-vm-package build daemon shim pause deb harness layout grpcio clientgo test unit model kill-pulls integration fuzz test-node kubelet test-kubectl test-cluster cluster conformance critest cni-plugins bench run lint fmt deny doc clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Installs those of the packages $(1) that are missing.
define install-packages
	@missing=""; for p in $(1); do \
		[ "$$(dpkg-query -W -f='$${db:Status-Status}' $$p 2>/dev/null || true)" = installed ] || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
		apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $$missing; \
	fi
endef

deps: ## Install the Debian packages that building and testing need (root)
	$(call install-packages,$(PACKAGES))

vm-deps: ## Install the Debian packages that the guest needs on this machine (root)
	$(call install-packages,$(VM_PACKAGES))

build: daemon shim pause ## Build copepod, copepod-shim and pause into target/bin

# Both packages in one command, so that cargo unifies their features and compiles what both use once.
BOTH := cargo build --locked --release -p runtime -p integration

daemon: | $(BIN) ## Build the daemon
	$(BOTH) --bin copepod
	install -m 0755 $(TARGET)/release/copepod $(BIN)/copepod

shim: | $(BIN) ## Build the static, size-optimised shim
	RUSTFLAGS="$(SHIM_RUSTFLAGS)" cargo build --locked --profile shim -p shim --target $(HOST)
	install -m 0755 $(TARGET)/$(HOST)/shim/copepod-shim $(BIN)/copepod-shim

pause: | $(BIN) ## Build pause (no std, static) and check that it has less than 4 KiB
	cargo build --locked --profile tiny -p pause
	install -m 0755 $(TARGET)/tiny/pause $(BIN)/pause
	@size=$$(stat -c %s $(BIN)/pause); [ $$size -lt 4096 ] || { echo "pause has $$size bytes, the limit is 4095"; exit 1; }

# Its lock file pins the crates of cargo-deb; xz-utils compresses.
CARGO_DEB_VERSION := 3.8.0
CARGO_DEB := $(TARGET)/tools/bin/cargo-deb
# Of the package: the upstream version, and Debian's revision.
DEB_VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)-1

deb: build ## Build the Debian package into target/debian; installs cargo-deb below target; DEB_VERSION=version DEB_MAINTAINER='Name <address>'
	@[ "$$($(CARGO_DEB) --version 2>/dev/null || true)" = $(CARGO_DEB_VERSION) ] || \
		cargo install --quiet --locked --root $(TARGET)/tools --no-default-features cargo-deb@$(CARGO_DEB_VERSION)
	packaging/deb/stage $(BIN) $(TARGET)/release/package
	$(CARGO_DEB) --no-build --no-strip --no-dbgsym --locked --package runtime --deb-version $(DEB_VERSION) \
		$(if $(DEB_MAINTAINER),--maintainer '$(DEB_MAINTAINER)') --output $(TARGET)/debian/

$(BIN):
	@mkdir -p $@

harness: | $(BIN) ## Build the black-box tests and the bench
	$(BOTH) --bin integration
	install -m 0755 $(TARGET)/release/integration $(BIN)/integration

# Its own folder: everything is compiled again, because symbols belong to the profile.
LAYOUT := $(TARGET)/layout

layout: build harness clientgo grpcio ## Trace the daemon and its shims and write runtime/layout.ld and runtime/shim/layout.ld, where their functions are placed (root)
	CARGO_PROFILE_RELEASE_STRIP=none cargo build --locked --release --target-dir $(LAYOUT) -p runtime -p integration --bin copepod
	CARGO_PROFILE_SHIM_STRIP=none RUSTFLAGS="$(SHIM_RUSTFLAGS)" cargo build --locked --profile shim --target-dir $(LAYOUT) -p shim --target $(HOST)
	rm -rf $(LAYOUT)/bin
	cp -a $(BIN) $(LAYOUT)/bin
	install -m 0755 $(LAYOUT)/release/copepod $(LAYOUT)/bin/copepod
	install -m 0755 $(LAYOUT)/$(HOST)/shim/copepod-shim $(LAYOUT)/bin/copepod-shim
	$(BIN)/integration layout --bin-dir $(LAYOUT)/bin --script runtime/layout.ld --shim-script runtime/shim/layout.ld

# A virtual environment without its requirements file was not completed.
GRPCIO := $(BIN)/grpcio

grpcio: | $(BIN) ## Install gRPC's Python client, with which a test calls the daemon
	@cmp -s integration/grpcio/requirements.txt $(GRPCIO)/requirements.txt || { \
		rm -rf $(GRPCIO); \
		python3 -m venv $(GRPCIO); \
		$(GRPCIO)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: \
			--requirement integration/grpcio/requirements.txt; \
		install -m 0644 integration/grpcio/requirements.txt $(GRPCIO)/; }

clientgo: | $(BIN) ## Build client-go's side of exec, attach and port-forward, with which tests stream
	$(MAKE) --no-print-directory -C integration/clientgo
	install -m 0755 integration/clientgo/bin/clientgo $(BIN)/clientgo

test: deps ## Unit, property and integration tests (root; real daemon, shim, pause, plugins, registry)
	$(MAKE) --no-print-directory unit
	$(MAKE) --no-print-directory integration

cni-plugins: ## Build today's CNI plugins from their Go modules
	$(MAKE) --no-print-directory -C integration/cni

unit: cni-plugins ## Unit and property tests of all crates; some of the shim's, the network's and the cgroups' need root
	COPEPOD_CNI_PLUGINS=$(CURDIR)/integration/cni/bin cargo test --locked --workspace --exclude pause

model: ## The state machines' property tests, 100,000 sequences each (make test runs 2,000)
	COPEPOD_MODEL_CASES=100000 cargo test --locked -p runtime --lib pod::life::tests::sequences
	COPEPOD_MODEL_CASES=100000 cargo test --locked -p shim --bin copepod-shim model_

KILLS := 200

kill-pulls: ## Kill a process that pulls and removes images at random moments (make unit: 8 times); KILLS=n
	COPEPOD_KILLS=$(KILLS) cargo test --locked -p image --test kill_pulls

integration: build harness grpcio clientgo ## Black-box tests through CRI, each ending with the census (root); FILTER=substring
	$(BIN)/integration test --bin-dir $(BIN) $(if $(FILTER),--filter $(FILTER))

kubelet: ## Build kubelet 1.37 from its Go module
	$(MAKE) --no-print-directory -C integration/kube

# Seconds for each target.
FUZZ_SECONDS := 600

FUZZ = cargo +nightly fuzz run $$target $$corpus -- -max_total_time=$(FUZZ_SECONDS) -max_len=20000 -timeout=10 -malloc_limit_mb=8

fuzz: ## Fuzz the streaming protocols, what registries send, image layers, hosts.toml, config.json and what CNI plugins print (nightly compiler, cargo-fuzz); FUZZ_SECONDS=n for each target
	cd runtime/streaming && for target in exec headers forward upgrade; do corpus=; $(FUZZ); done
	cd image && for target in manifest config reference layer unpack hosts challenge credentials; do corpus=; $(FUZZ); done
	cd runtime/network && for target in result configuration; do \
		corpus="fuzz/corpus/$$target fixtures/$$target"; mkdir -p $$corpus; $(FUZZ); done

test-node: deps build harness kubelet ## Tests with the real kubelet, standalone, on copepod (root)
	$(BIN)/integration node-test --bin-dir $(BIN) --kubelet $(KUBELET)

cluster: ## Build etcd, Kubernetes 1.37's control plane, metrics-server and kubectl from their Go modules
	$(MAKE) --no-print-directory -C integration/cluster

test-kubectl: deps build harness kubelet cluster ## kubectl through a control plane and the real kubelet on copepod (root); FILTER=substring
	$(BIN)/integration kubectl-test --bin-dir $(BIN) --kubelet $(KUBELET) --cluster $(CLUSTER) $(if $(FILTER),--filter $(FILTER))

test-cluster: deps build harness kubelet cluster ## Kubernetes' controllers and scheduler with two nodes of copepod (root); FILTER=substring
	$(BIN)/integration cluster-test --bin-dir $(BIN) --kubelet $(KUBELET) --cluster $(CLUSTER) $(if $(FILTER),--filter $(FILTER))

# The guest is kept by the hash of all that it is made from.
VM_RELEASE ?= trixie
# With the policy `selinux` it is another guest, which enforces Debian's SELinux policy.
VM_POLICY ?=
VM_NAME = $(VM_RELEASE)$(VM_POLICY)
VM_IMAGE = $(TARGET)/vm/$(VM_NAME)-$(shell cat integration/vm/packages $(if $(VM_POLICY),integration/vm/packages.$(VM_POLICY)) integration/vm/*.sh integration/vm/guest/* | sha256sum | cut -c1-12)
# The drivers of cgroups that the tests run with in the guest, one after the other: cgroupfs, systemd.
VM_DRIVER ?= cgroupfs systemd
# By how much the time limits of tests are longer in the guest, which is emulated; seconds for a run.
VM_SLOWNESS ?= 8
VM_LIMIT ?= 14400
# For how many seconds the guest may be silent: longer than its longest test.
VM_SILENCE ?= 2400
VM_RUN = $(BIN)/integration vm --image $(VM_IMAGE) --files $(BIN) $(if $(VM_DEB),--deb $(VM_DEB)) --kernel "$(VM_KERNEL)"
# With time limits for tests.
VM_TEST = $(VM_RUN) --env COPEPOD_TEST_SLOWNESS=$(VM_SLOWNESS) --limit $(VM_LIMIT) --silence $(VM_SILENCE)
# In the guest: the test program with these arguments, once with each driver.
define with-each-driver
for driver in $(VM_DRIVER); do \
			echo "== cgroup driver $$driver"; \
			COPEPOD_TEST_CGROUP_DRIVER=$$driver bin/integration $(1) || exit; \
		done
endef

vm-image: vm-deps ## Make the guest, a Debian of VM_RELEASE, if it has not been made (root)
	@[ -e $(VM_IMAGE)/disk ] || { rm -rf $(TARGET)/vm/$(VM_NAME)-*; VM_POLICY=$(VM_POLICY) integration/vm/image.sh $(VM_IMAGE); }

vm: build harness grpcio clientgo vm-image ## A shell in a guest with what was built; VM_RELEASE=trixie VM_KERNEL="parameters" VM_DEB=package
	$(VM_RUN) --shell

test-vm: build harness grpcio clientgo vm-image ## Black-box tests in a guest: Debian 13, cgroup v2, systemd (root); FILTER=substring VM_DRIVER="cgroupfs systemd" VM_RELEASE VM_KERNEL VM_DEB
	$(VM_TEST) --run ' \
		$(call with-each-driver,test --bin-dir bin $(if $(FILTER),--filter "$(FILTER)"))'

# What CI has time for: limits, device rules and what runc does, each with both drivers.
VM_SMOKE := pod::,resources::,update::,same_as_runc::,leaf::,confinement::devices,apparmor::,scopes::

test-vm-smoke: ## The part of test-vm that CI runs
	$(MAKE) --no-print-directory test-vm FILTER=$(VM_SMOKE) VM_LIMIT=1200

# The module is what docs/selinux.md tells an operator to load. Files of the second disk have no labels until they get one.
# The tests themselves run in the daemon's domain, which is not confined, so that the tools that they call are not either.
test-vm-selinux: VM_POLICY = selinux
test-vm-selinux: VM_KERNEL = security=selinux enforcing=1
# critest's specs about SELinux come after all tests.
test-vm-selinux: SPECS = $(if $(FILTER),,$(CRITEST))
test-vm-selinux: build harness grpcio clientgo ## SELinux tests in a guest that enforces Debian's policy (root); FILTER=substring VM_DRIVER, or CRITEST=path for its specs too
	$(MAKE) --no-print-directory vm-image VM_POLICY=$(VM_POLICY)
	$(VM_RUN) --files packaging/selinux $(if $(SPECS),--files $(SPECS)) --env COPEPOD_TEST_SLOWNESS=$(VM_SLOWNESS) --env COPEPOD_TEST_SELINUX=1 \
		--limit 3600 --silence 900 --run ' \
		semodule -i selinux/copepod.cil && chcon -R system_u:object_r:bin_t:s0 bin $(if $(SPECS),critest) && \
		chcon system_u:object_r:copepod_exec_t:s0 bin/copepod bin/integration || exit; \
		for driver in $(VM_DRIVER); do \
			echo "== cgroup driver $$driver"; \
			export COPEPOD_TEST_CGROUP_DRIVER=$$driver; \
			bin/integration test --bin-dir bin --filter "$(or $(FILTER),selinux::)" $(if $(SPECS),&& \
				bin/integration conformance --bin-dir bin --critest ./critest --focus SELinux --reports /var/tmp/$$driver) && continue; \
			dmesg | grep "avc: *denied" | tail -n 40; exit 1; \
		done'

test-vm-node: build harness kubelet vm-image ## test-node in a guest (root); FILTER=substring VM_DRIVER="systemd cgroupfs" VM_RELEASE VM_KERNEL
	$(VM_TEST) --files $(KUBELET) --run ' \
		$(call with-each-driver,node-test --bin-dir bin --kubelet kubelet $(if $(FILTER),--filter $(FILTER)))'
# systemd is what kubelet has on nearly every node with cgroup v2.
test-vm-node: VM_DRIVER = systemd

# Where `make deb` puts the package; $(1) is its version.
package = $(TARGET)/debian/copepod_$(1)_amd64.deb

test-vm-guide: deb harness kubelet vm-image ## docs/kubernetes.md, executed in a guest that is rebooted afterwards (root)
	$(VM_TEST) --files $(call package,$(DEB_VERSION)) --files $(KUBELET) --files docs/kubernetes.md --run \
		'bin/integration guide-test --page kubernetes.md --package copepod_$(DEB_VERSION)_amd64.deb --kubelet kubelet'

# The second package of test-vm-package: the same programs, as another revision of Debian's.
DEB_NEXT = $(firstword $(subst -, ,$(DEB_VERSION)))-9

test-vm-package: harness vm-image ## Installation, upgrade, downgrade, faults, removal and purge of the package in a guest (root)
	$(MAKE) --no-print-directory deb
	$(MAKE) --no-print-directory deb DEB_VERSION=$(DEB_NEXT)
	$(VM_TEST) --files $(call package,$(DEB_VERSION)) --files $(call package,$(DEB_NEXT)) --run \
		'bin/integration package-test --old copepod_$(DEB_VERSION)_amd64.deb --new copepod_$(DEB_NEXT)_amd64.deb'

# critest is part of a cri-tools release (sigs.k8s.io/cri-tools); its own image names are served by the tests' registry.
CRITEST ?= $(shell command -v critest)

conformance: critest deps build harness ## critest of cri-tools with SPDY and WebSocket, compared with integration/conformance/expected.txt (root); CRITEST=path SEED=number
	$(BIN)/integration conformance --bin-dir $(BIN) --critest $(CRITEST) --reports $(TARGET)/conformance $(if $(SEED),--seed $(SEED))

test-vm-conformance: critest build harness vm-image ## critest in a guest, where AppArmor is on (root); CRITEST=path SEED=number VM_DRIVER
	$(VM_TEST) --files $(CRITEST) --run ' \
		$(call with-each-driver,conformance --bin-dir bin --critest ./critest --reports /var/tmp/$$driver $(if $(SEED),--seed $(SEED)))'

critest:
	@[ -x "$(CRITEST)" ] || { \
		echo "conformance: no critest $(if $(CRITEST),at $(CRITEST),on PATH): give the binary of a cri-tools release, as make conformance CRITEST=/path/to/critest" >&2; \
		exit 2; }

# A program of containerd, such as that of Debian's package, beside which the bench measures pulls.
CONTAINERD ?= $(shell command -v containerd)

bench: deps build harness clientgo ## Measure, and print one table (root); BESIDE="name=bin-dir" adds a build, ENDPOINTS="name=socket[,certs.d]" a runtime, CONTAINERD=path one for pulls; FILTER=pods, execs, logs, streams, memory or pulls
	$(BIN)/integration bench --bin-dir $(BIN) $(foreach e,$(BESIDE),--beside $(e)) $(foreach e,$(ENDPOINTS),--endpoint $(e)) $(if $(CONTAINERD),--containerd $(CONTAINERD)) $(if $(FILTER),--filter $(FILTER))

run: deps build harness ## Demonstration: registry, image, pod with a CNI network, its log, an exec, clean-up (root)
	$(BIN)/integration demo --bin-dir $(BIN)

lint: ## rustfmt and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --locked --workspace --exclude pause --all-targets -- -D warnings
	cargo clippy --locked -p pause --profile tiny -- -D warnings

fmt: ## Format everything
	cargo fmt --all

deny: ## Check dependencies between crates and modules, places of unsafe code, lengths of files, licences and origins
	@.ci/arrows
	@.ci/licences

doc: ## API documentation
	cargo doc --locked --no-deps --document-private-items

clean: ## Remove what was built
	cargo clean
	rm -rf integration/kube/bin integration/cluster/bin integration/clientgo/bin integration/cni/bin
