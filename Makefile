# The few commands there are. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)

.PHONY: help demo test lint fmt bench openapi setup

help: ## List the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what demo and test need (Debian packages, by name)
	@tests/setup.sh

demo: setup ## Show the main job on a real engine and registry (DEMO_ONCE=1 ends by itself)
	@$(CARGO) build --quiet --release -p holdfast-agent -p holdfast-api
	@$(CARGO) build --quiet -p holdfast-tests --bins
	@HOLDFAST_BIN_DIR="$$($(CARGO) metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release" \
	  $(CARGO) run --quiet -p holdfast-tests --bin demo

test: setup ## Run every test: units, store on both databases, real engine, registry and PostgreSQL
	@$(CARGO) build --quiet --workspace --bins
	@$(CARGO) run --quiet -p holdfast-tests --bin lab -- run \
	  $(if $(NEXTEST),$(CARGO) nextest run --workspace,$(CARGO) test --workspace --no-fail-fast)
	@$(CARGO) test --quiet --workspace --doc

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

bench: setup ## Measure swap, roll back, memory and size; writes docs/figures.md
	@$(CARGO) build --quiet --release -p holdfast-agent -p holdfast-api
	@HOLDFAST_BIN_DIR="$$($(CARGO) metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release" \
	  $(CARGO) run --quiet -p holdfast-tests --bin figures
