# The two commands. Each does all its set-up: see .ci/prepare.
.PHONY: up test fix dist

up: ## start a highly available cluster on this machine
	@.ci/prepare up
	cargo run --release -- up $(ARGS)

test: ## everything that must hold: format, lints, all tests, seeded simulations. Writes nothing into the tree.
	@.ci/prepare test
	cargo verify

fix: ## format, and apply what clippy can
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged

dist: ## what is shipped, and what speed is measured with: one optimised whole, slow to build
	@.ci/prepare up
	cargo build --profile dist
