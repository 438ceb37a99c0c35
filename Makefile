# `make help` lists the targets and their comments that start with two hashes.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup run demo test unit contract live fuzz lint format man readme bench bench-quick \
	wheel clean setup-dev setup-test setup-bench setup-vm vm vm-boxes vm-clean vm-validate

# After plain `su`, PATH lacks these.
export PATH := $(PATH):/usr/sbin:/sbin

# The virtual environment is for development, and for `run` on distributions whose click is too old.
# It is based on the system's Python, which has bcc's bindings.
VENV := .venv/bin
PYTHON = $$(test -x $(VENV)/python && echo $(VENV)/python || echo /usr/bin/python3)
# Under sudo, do not write files to the tree that its owner cannot remove.
ROOT := $(shell test "$$(id -u)" = 0 || echo sudo env PYTHONDONTWRITEBYTECODE=1)
PYTEST = $(VENV)/python -m pytest $(if $(ROOT),-p no:cacheprovider)
C_FILES = $$(find bpf_programs -name '*.[ch]')
# Other files below vagrant/ (boxes, machines) are not checked.
SHELL_FILES = .ci/run $$(find scripts -name '*.sh') $(wildcard vagrant/*.sh)
# Settings passed to the lab, also through sudo, if they are set.
VM_SETTINGS = KERNEL TESTS JOBS LIMIT UP_LIMIT KEEP SAVE MIRROR PIP_CERT http_proxy https_proxy \
	no_proxy $(filter NETBPF_VM_%,$(.VARIABLES))
LAB = $(ROOT) env PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=vagrant \
	$(foreach name,$(VM_SETTINGS),$(if $($(name)),$(name)="$$$(name)")) /usr/bin/python3 -m lab

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | \
		while IFS='|' read -r name text; do printf '%-11s %s\n' "$$name" "$$text"; done

setup: ## install missing dependencies of netbpf
	@scripts/setup.sh run

setup-dev:
	@scripts/setup.sh dev

setup-test:
	@scripts/setup.sh test

setup-bench:
	@scripts/setup.sh bench

setup-vm:
	@scripts/setup.sh vm

run: setup ## install missing dependencies and run the demonstration (root)
	@$(ROOT) $(PYTHON) -m netbpf demo

demo: run ## same as run

test: setup-test ## run all tests: unit, contract and live (root)
	@$(ROOT) $(VENV)/python -m tests.lanes $(if $(ROOT),-p no:cacheprovider)

unit: setup-dev ## run unit tests: no root, no bcc
	@$(VENV)/python -m pytest tests/unit

contract: setup-dev ## check the conventions for tools
	@$(VENV)/python -m pytest tests/contract

live: setup-test ## compare the tools' output with known traffic (root)
	@$(ROOT) $(PYTEST) -m live

fuzz: setup-dev ## fuzz every parser: CASES=1000 TARGETS="elf go"
	@$(VENV)/python -W ignore -m tests.fuzz $(TARGETS)

vm: setup-vm ## run live tests on other kernels in virtual machines: KERNEL=6.12 (root)
	@$(LAB)

vm-boxes: setup-vm ## only build the boxes: KERNEL=all (root)
	@$(LAB) --boxes-only

vm-clean: setup-vm ## remove machines left by KEEP=1 or a killed run (root)
	@$(LAB) --clean

vm-validate: ## validate vagrant/Vagrantfile
	@home=$$(mktemp -d) && cd vagrant && status=0 && \
		VAGRANT_HOME=$$home/home VAGRANT_DOTFILE_PATH=$$home/dot VAGRANT_CHECKPOINT_DISABLE=1 \
		VAGRANT_DEFAULT_PROVIDER=libvirt vagrant validate || status=$$?; \
		rm -rf "$$home"; exit $$status

lint: setup-dev ## run linters, type and format checks
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy --strict netbpf
	@clang-format --dry-run -Werror $(C_FILES)
	@if command -v shellcheck >/dev/null; then shellcheck $(SHELL_FILES); \
		else echo 'lint: shellcheck is not installed, shell scripts were not checked' >&2; fi

format: setup-dev ## format Python and C
	@$(VENV)/ruff check --fix .
	@$(VENV)/ruff format .
	@clang-format -i $(C_FILES)

man: setup-dev ## generate man pages in build/man
	@$(VENV)/python -m netbpf.docs build/man

readme: setup-dev ## regenerate the tables in README.md and docs
	@$(VENV)/python -m netbpf.docs --tables README.md docs/*.md

bench: setup-bench ## measure all tools beside their peers: report in build/bench (root)
	@$(ROOT) /usr/bin/python3 -m bench $(TABLES)

bench-quick: setup-bench ## measure three tools in one round (root)
	@$(ROOT) /usr/bin/python3 -m bench --quick $(TABLES)

wheel: setup-dev ## build a source archive and a wheel in dist
	@$(VENV)/python -m build --no-isolation --outdir dist

clean: ## remove build products, keep .venv
	@rm -rf build dist netbpf.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
