# The few commands there are. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)
TEST := $(if $(NEXTEST),$(CARGO) nextest run --workspace,$(CARGO) test --workspace --no-fail-fast)
# What `make test` finds, it finds each time; `make properties` draws other random numbers in each run.
SEED ?= 20261121
RUNS ?= 10
TARGET ?= $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)

.PHONY: bench crash-matrix cross demo digest-matrix fmt help image lint man openapi order package properties release \
  rollout-campaign selfupdate-campaign setup test test-cross test-image test-machines test-packages

help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what demo and test need (Debian packages, by name)
	@tests/setup.sh

demo: setup ## Show the main job on a real engine and registry (DEMO_ONCE=1 ends by itself)
	@echo "building …"
	@$(CARGO) build --quiet --bins -p holdfast-agent -p holdfast-api -p holdfast-tests
	@$(CARGO) run --quiet -p holdfast-tests --bin demo

test: setup ## Run every test: units, store on both databases, real engine, registry and PostgreSQL
	@$(TEST) --no-run
	@PROPTEST_RNG_SEED="$(SEED)" HOLDFAST_BIN_DIR="$(TARGET)/debug" "$(TARGET)/debug/lab" run $(TEST)
	@$(CARGO) test --quiet --workspace --doc

properties: ## Run the planner's property tests RUNS times, each with other random numbers
	@for run in $$(seq "$(RUNS)"); do $(CARGO) test --quiet -p holdfast-plan; done

lint: ## Check formatting, clippy, dependencies and the API document
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --workspace --all-targets --all-features --quiet -- -D warnings
	@if command -v cargo-deny >/dev/null 2>&1; then \
	  $(CARGO) deny --config .deny.toml check bans licenses sources; \
	else echo "cargo-deny is not installed: dependency rules not checked here (CI installs it)"; fi

fmt: ## Format everything
	@$(CARGO) fmt --all

openapi: ## Write proto/openapi/control-api.json anew from the handlers
	@mkdir -p proto/openapi
	@$(CARGO) run --quiet -p holdfast-api -- openapi > proto/openapi/control-api.json.new
	@mv proto/openapi/control-api.json.new proto/openapi/control-api.json

man: ## Write the agent's man pages and shell completions into target/man
	@$(CARGO) run --quiet -p holdfast-agent --example man -- "$(TARGET)/man"

release: ## Build the programs as they are shipped, into target/dist
	@$(CARGO) build --quiet --release -p holdfast-agent
	@$(CARGO) build --quiet --profile server -p holdfast-api
	@mkdir -p "$(TARGET)/dist"
	@cp "$(TARGET)/release/holdfast-agent" "$(TARGET)/server/holdfast-api" "$(TARGET)/dist/"
	@ls -l "$(TARGET)/dist"

IMAGE_TARGETS ?= x86_64-unknown-linux-musl aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf arm-unknown-linux-musleabihf

image: ## Make the control API's container image (IMAGE_TARGETS=… for some platforms), an OCI layout and archive
	@for target in $(IMAGE_TARGETS); do cross/build.sh "$$target" api; done
	@CARGO_TARGET_DIR="$(TARGET)" cross/image.sh

bench: setup release ## Measure what docs/figures.md says; PARTS=… measures some of it
	@HOLDFAST_BIN_DIR="$(TARGET)/dist" $(CARGO) run --quiet -p holdfast-tests --bin bench -- $(PARTS)

crash-matrix: setup release ## Let agent, engine or all die at every point (CRASH_MATRIX="--sample 100"); writes docs/crash-matrix.md
	@HOLDFAST_BIN_DIR="$(TARGET)/dist" $(CARGO) run --quiet -p holdfast-tests --bin crash-matrix -- $(CRASH_MATRIX)

digest-matrix: setup ## Ask the agent about every shape of image (DIGEST_MATRIX="--every 10"); writes docs/digest-matrix.md
	@$(CARGO) build --quiet --bins -p holdfast-agent -p holdfast-tests
	@HOLDFAST_BIN_DIR="$(TARGET)/debug" "$(TARGET)/debug/lab" run "$(TARGET)/debug/digest-matrix" $(DIGEST_MATRIX)

rollout-campaign: setup release ## Kill and stop control APIs in the middle of rollouts (ROLLOUT_CAMPAIGN="--instants 50"); writes docs/rollout-campaign.md
	@HOLDFAST_BIN_DIR="$(TARGET)/dist" $(CARGO) run --quiet -p holdfast-tests --bin rollout-campaign -- $(ROLLOUT_CAMPAIGN)

selfupdate-campaign: setup ## Give devices bad releases of the agent (SELFUPDATE_CAMPAIGN="--times 5"); writes docs/selfupdate-campaign.md
	@$(CARGO) build --quiet --bins -p holdfast-agent -p holdfast-api -p holdfast-tests
	@HOLDFAST_BIN_DIR="$(TARGET)/debug" "$(TARGET)/debug/lab" run "$(TARGET)/debug/selfupdate-campaign" $(SELFUPDATE_CAMPAIGN)

# The targets of cross/targets, or those that are named: make cross TARGETS="aarch64-unknown-linux-gnu"
TARGETS ?= $(shell awk '!/^\#/ && NF { print $$1 }' cross/targets)
export CARGO_TARGET_DIR := $(TARGET)

cross: ## Build the agent for every target, or for TARGETS="…", as it is shipped
	@for target in $(TARGETS); do cross/build.sh "$$target" agent; done

order: setup ## Write cross/order.ld anew: which of the agent's functions run at rest (needs valgrind)
	@HOLDFAST_SYMBOLS=1 CARGO_TARGET_DIR="$(TARGET)/order" HOLDFAST_BUILD=debian cross/build.sh x86_64-unknown-linux-gnu agent
	@$(CARGO) build --quiet --bins -p holdfast-agent -p holdfast-api -p holdfast-tests
	@HOLDFAST_BIN_DIR="$(TARGET)/debug" "$(TARGET)/debug/lab" run "$(TARGET)/debug/order" \
	  "$(TARGET)/order/cross/x86_64-unknown-linux-gnu/holdfast-agent" "$(CURDIR)/cross/order.ld"

test-cross: ## Run the agents that `make cross` built, under qemu-user where they are for another processor
	@cross/test.sh $(TARGETS)

package: man ## Build and pack everything that a release holds, into target/packages (takes long)
	@for target in $(TARGETS); do HOLDFAST_BUILD=debian cross/build.sh "$$target" agent api; cross/package.sh "$$target"; done
	@cross/release.sh

test-image: setup image ## Start the control API's image with its Compose file and a PostgreSQL (IMAGE_TARGETS=… as for image)
	@$(CARGO) build --quiet --bins -p holdfast-tests
	@CARGO_TARGET_DIR="$(TARGET)" "$(TARGET)/debug/lab" run sh -c 'DOCKER_HOST="unix://$$("$(TARGET)/debug/lab" socket)" cross/test-image.sh'

test-packages: ## Install, upgrade, remove and purge the packages in a fresh Debian root
	@cross/test-packages.sh

test-machines: setup package ## Install the packages on booted Debian machines, amd64 and arm64, and run agents of other processors; writes docs/machines.md (MACHINES="--only amd64")
	@$(CARGO) build --quiet --bins -p holdfast-agent -p holdfast-api -p holdfast-tests
	@HOLDFAST_BIN_DIR="$(TARGET)/debug" HOLDFAST_PACKAGES="$(TARGET)/packages" "$(TARGET)/debug/lab" run "$(TARGET)/debug/machines" $(MACHINES)
