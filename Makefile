# Everything uses the release profile, so that librdkafka is compiled once.

CARGO ?= cargo
LIVES ?= 100
AWAY ?= 600
SECONDS ?= 600
FUZZ_SECONDS ?= 60

.DEFAULT_GOAL := help
.PHONY: help setup build test demo bench benchmarks bench-peers latency replica instructions profile soak endurance fuzz golden clean

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

bench: setup ## how fast it is beside readers that do nothing, printed; PARTS="drain tls latency recovery start idle" SHAPES="ten one"
	$(CARGO) bench --bench bench

benchmarks: setup ## the same, and docs/benchmarks.md, .json and .svg are written again; 25 minutes, on a machine that does nothing else
	WRITE=1 $(CARGO) bench --bench bench

bench-peers: setup ## as bench, and Debezium on Kafka Connect, tuned, is one more reader
	@scripts/setup peers
	PEERS=1 PARTS=drain $(CARGO) bench --bench bench

latency: setup ## how long a commit takes to a consumer, at 20 and 500 commits a second; SECONDS=20
	PARTS=latency $(CARGO) bench --bench bench

replica: setup ## what the replica of a large table takes: ROWS=10000000, CHANGES=500000
	$(CARGO) bench --bench replica

instructions: ## what each step costs a row, in instructions; says what has changed. WRITE=1 keeps the figures in docs/instructions.md
	@scripts/setup instructions
	$(CARGO) bench --bench steps

profile: ## a flame graph of a drain, in target/profile.svg; SHAPE=one MODE=changes ROWS=500000
	@scripts/setup profile
	$(CARGO) bench --bench profile

soak: setup ## kill -9 of the program and its servers while sessions write, LIVES=1000 for a night; servers away for AWAY=600 seconds
	OFFSHOOT_TEST_LIVES=$(LIVES) OFFSHOOT_TEST_AWAY=$(AWAY) $(CARGO) test --release --test it -- soak --nocapture

endurance: setup ## idle, load, and restarts of both servers, for SECONDS=600
	OFFSHOOT_TEST_ENDURANCE=$(SECONDS) $(CARGO) test --release --test it -- endurance --nocapture

fuzz: setup ## look for input that breaks a decoder; FUZZ_SECONDS=3600 for each of three
	@command -v cargo-fuzz >/dev/null || { \
	    echo "fuzz: cargo-fuzz and a nightly compiler are needed:" \
	         "cargo install cargo-fuzz && rustup toolchain install nightly" >&2; exit 1; }
	@# The decoders have no unsafe code, and the C libraries beside them do not link with an address sanitizer. Spill
	@# files in memory: a disk would be most of the time.
	set -e; for target in frame pgoutput assemble; do \
	    mkdir -p fuzz/found/$$target; \
	    TMPDIR=/dev/shm cargo +nightly fuzz run --sanitizer none --debug-assertions $$target fuzz/found/$$target fuzz/corpus/$$target \
	        -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096; \
	done

golden: setup ## capture the wire bytes of Postgres 14 to 18 again
	$(CARGO) test --release --test it -- --ignored golden::capture
	$(CARGO) test --release --test it -- golden:: fuzz_corpora::

clean: ## remove what was built; what was fetched stays, in the directory that .servers links to
	$(CARGO) clean
	rm -f .servers
