# GuildNet: every target is a short way into a command or a script; `make` lists them.
# Variables: CLUSTERS, CLUSTER, PURGE, ARGS; settings come from flags, the environment or .env (see .env.example).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help build up down test lint headscale-namespace router-ensure verify-e2e regen-certs env-sync-lan lab-up lab-down \
	lab-faults lab-ten lab-matrix lab-nat bench bench-quick bench-kube soak load

CARGO ?= cargo
export CLUSTERS CLUSTER PURGE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the commands: bin/guildnet and bin/guildnet-lab
	@scripts/build.sh

up: build ## the lab's fleet, reached and verified; or real clusters: make up CLUSTERS='a=~/a.yaml b=~/b.yaml'
	@scripts/up.sh

down: ## stop everything that `up` started; PURGE=1 removes state too
	@scripts/down.sh

test: ## all tests that this machine can run (the fleet's need root)
	@scripts/test.sh

lint: ## format, clippy, licences and sources of dependencies
	@scripts/lint.sh

headscale-namespace: build ## CLUSTER=id: namespace and keys on Headscale -> tmp/cluster-<id>-headscale.json
	@scripts/headscale-namespace-and-keys.sh "$(CLUSTER)" $(ARGS)

router-ensure: build ## CLUSTER=id: the router DaemonSet on the current kubeconfig's cluster, and wait for it
	@scripts/deploy-tailscale-router.sh "$(CLUSTER)" $(ARGS)

verify-e2e: build ## check every link of every cluster; CLUSTER=id for one
	@bin/guildnet verify $(CLUSTER) $(ARGS)

regen-certs: build ## renew the certificate of https://127.0.0.1:8090 (ARGS=--new-ca: its authority too)
	@bin/guildnet certs regen $(ARGS)

env-sync-lan: build ## where .env names 127.0.0.1 as Headscale server, write the address that pods can reach
	@scripts/env-sync-lan.sh $(ARGS)

lab-up: build ## the lab alone: Headscale and two clusters with equal networks (root)
	@scripts/lab.sh up $(ARGS)

lab-down: ## stop the lab and remove what it made
	@scripts/lab.sh down

lab-faults: ## keys, identities and clusters removed, Headscale restored and moved: long tests on a lab of their own (root)
	@PROFILE=faults scripts/test.sh

lab-ten: ## ten clusters with equal networks at once, by via and by 4via6, in labs of their own (root, minutes)
	@scripts/lab-wide.sh ten_equal_clusters

lab-matrix: ## every Headscale (0.26 to 0.29) with every router, in labs of their own -> docs/operations/matrix.md (root, minutes)
	@scripts/lab-matrix.sh

lab-nat: ## routers and their faults, links, kinds of NAT, what flows live through, in labs of their own (root, minutes)
	@scripts/lab-wide.sh '/^(admitted|fail_over|join|life|link|moved|nat|routers)::/'

bench: ## the connector beside Go's tsnet, on the running lab -> bench/results/ (ARGS='--only link'; root, for links)
	@scripts/bench.sh $(ARGS)

bench-quick: ## a fair part of it, five minutes
	@scripts/bench.sh --quick --rounds 2 --mib 32 $(ARGS)

bench-kube: ## Kubernetes through the Host App beside the API server asked directly, on the running lab (ARGS=--json; root)
	@scripts/bench-kube.sh $(ARGS)

soak: ## one connector kept busy for an hour on the running lab: memory, rekeys, path changes (ARGS='--minutes 5')
	@scripts/soak.sh $(ARGS)

load: ## bulkheads, and 100 clusters in one Host App, on a lab of its own (root, minutes; ARGS=--json)
	@scripts/load.sh $(ARGS)
