# Everything uses the release profile, so that librdkafka is compiled once.

CARGO ?= cargo
LIVES ?= 100

.DEFAULT_GOAL := help
.PHONY: help setup build test demo bench soak golden clean

help: ## print this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install and fetch what is missing to build and to test
	@scripts/setup

build: setup ## build the program: target/release/offshoot
	$(CARGO) build --release

test: setup ## format, lints, unit tests, and the tests on real servers
	$(CARGO) fmt --check
	$(CARGO) clippy --release --all-targets -- -D warnings
	$(CARGO) test --release

demo: ## a Postgres, a Kafka and Offshoot between them: SQL and its records side by side
	@scripts/setup demo
	$(CARGO) build --release --bin offshoot --example demo
	@target/release/examples/demo $(DEMO)

bench: setup ## how fast a backlog is published, beside a reader that does nothing with it
	$(CARGO) bench

soak: setup ## kill -9 while sessions write; LIVES=1000 for a night
	OFFSHOOT_TEST_LIVES=$(LIVES) $(CARGO) test --release --test it -- soak --nocapture

golden: setup ## capture the wire bytes of Postgres 14 to 18 again
	OFFSHOOT_TEST_CAPTURE=1 $(CARGO) test --release --test it -- golden --nocapture

clean: ## remove what was built; what was fetched stays, in the directory that .servers links to
	$(CARGO) clean
	rm -f .servers
