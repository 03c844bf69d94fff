# dagger: `make demo` and `make demo-membership` show it, `make test` tests it. `verify` never writes to the tree, `fix` does.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
# Where the guest image and the Debian tree are kept between runs.
CACHE ?= $(CURDIR)/.cache
PREFIX ?= /usr
SYSCONFDIR ?= /etc
DESTDIR ?=
BINARIES := dagger-agent dagger-console dagger-dhcp dagger-fetch dagger-ledger dagger-net dagger-processor daggerctl
SEEDS ?= 1000
# The first of the fresh seeds; give it to repeat a run. Each tree is tested with its own, so that a
# green tree stays green; `make soak` takes others each time.
ifndef DAGGER_FIRST_SEED
TREE := $(shell git rev-parse HEAD^{tree} 2>/dev/null | cut -c1-8)
DAGGER_FIRST_SEED := $(if $(filter soak,$(MAKECMDGOALS))$(if $(TREE),,clock),$(shell \
  date +%s),$(shell printf '%d' 0x$(TREE)))00
endif
export DAGGER_FIRST_SEED

.PHONY: help demo demo-membership build guest-image debian-image debian-tree verify fix test soak bench release install

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: ## build, start four hosts, boot a VM by one signed request, show its history (KEEP=1 leaves it running)
	@scripts/prerequisites.sh demo
	@$(MAKE) --no-print-directory build guest-image
	@scripts/demo.sh "$(CARGO_TARGET_DIR)/debug" "$(CACHE)"

demo-membership: ## build, then: a refusal with its rule, a fifth operator joins, a dead host's VM goes elsewhere, one bill by two hosts
	@scripts/prerequisites.sh demo-membership
	@$(MAKE) --no-print-directory build
	@scripts/demo-membership.sh "$(CARGO_TARGET_DIR)/debug" "$(CACHE)"

build: ## build everything with the one profile of tests and demo
	@scripts/prerequisites.sh build
	$(CARGO) build --locked --workspace --bins

guest-image: ## make the small guest image from Debian packages (kept in .cache)
	@images/recipes/small/build.sh --cache "$(CACHE)"

debian-image: ## make the full Debian 12 cloud image with cloud-init (kept in .cache; needs root or sudo)
	@images/recipes/debian-12/build.sh --cache "$(CACHE)"

debian-tree: ## make the Debian trees in which the systemd units are tested (kept in .cache)
	@scripts/debian-tree.sh "$(CACHE)"
	@scripts/debian-tree.sh "$(CACHE)" libvirt

verify: ## formatting, lints, and the house rules; writes nothing
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) nextest run --locked -p dagger-tests --test tidy

fix: ## what of `verify` a machine can mend
	$(CARGO) fmt --all
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged

test: ## everything that decides whether a change may land
	@scripts/prerequisites.sh test
	@$(MAKE) --no-print-directory verify build guest-image debian-tree
	@echo "fresh seeds from $(DAGGER_FIRST_SEED) on (DAGGER_FIRST_SEED=... repeats them)"
	DAGGER_CACHE="$(CACHE)" $(CARGO) nextest run --locked --workspace
	$(CARGO) nextest run --locked -p dagger-tests --features planted-bugs --test planted
	$(CARGO) nextest run --locked -p dagger-ledger-core --features planted-bugs --lib --test directed

soak: build debian-image ## the long simulations (SEEDS=1000 for each size), hostile bytes for every decoder, storms of real processes, a Debian guest, the hunt for all planted bugs, kept histories and vectors in the released build, and a million payloads against the model
	@scripts/prerequisites.sh test
	DAGGER_CACHE="$(CACHE)" $(CARGO) nextest run --locked -p dagger-tests --test debian_guest --run-ignored all
	for hosts in 4 7 10; do \
	  $(CARGO) run --locked -p dagger-tests --bin sim -- --first-seed $(DAGGER_FIRST_SEED) \
	    --seeds $(SEEDS) --hosts $$hosts; \
	done
	$(CARGO) run --locked -p dagger-tests --bin sim-machines -- --first-seed $(DAGGER_FIRST_SEED) \
	  --seeds $(SEEDS)
	$(CARGO) run --locked -p dagger-tests --bin fuzz -- --seconds 60 --first-seed $(DAGGER_FIRST_SEED)
	$(CARGO) run --locked -p dagger-tests --bin endure -- storm --seconds 120 --faults 125
	$(CARGO) run --locked -p dagger-tests --bin endure -- storm --hosts 1 --kinds kill --seconds 60 --faults 60
	$(CARGO) run --locked -p dagger-tests --bin endure -- outages
	$(CARGO) run --locked -p dagger-tests --features planted-bugs --bin sim -- --planted all
	$(CARGO) run --locked -p dagger-tests --features planted-bugs --bin sim-machines -- --planted all
	$(CARGO) nextest run --locked --release -p dagger-payload -p dagger-processor \
	  -E 'binary(signatures) + binary(vectors) + test(kept_history)'
	DAGGER_MODEL_PAYLOADS=1000000 $(CARGO) test --locked -p dagger-processor --test model -- --nocapture

bench: ## what judging and the agent cost, as JSON, each figure beside a bound measured in the same run
	@$(CARGO) bench --locked -p dagger-processor --bench judge
	@$(CARGO) build --locked --release --bins
	@$(CARGO) bench --locked -p dagger-tests --bench agent

release: ## optimised binaries, as they are installed
	@scripts/prerequisites.sh build
	$(CARGO) build --locked --release --bins

install: ## install binaries, units, users and directories (DESTDIR, PREFIX, SYSCONFDIR; PROFILE=debug|release)
	@scripts/install.sh "$(CARGO_TARGET_DIR)/$(or $(PROFILE),release)" "$(DESTDIR)" "$(PREFIX)" "$(SYSCONFDIR)"
