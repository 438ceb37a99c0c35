# `make help` lists the targets; its text is made from the comments that start with two hashes.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup run demo test unit contract live fuzz lint format man readme bench wheel clean \
	setup-dev setup-test setup-bench setup-vm vm vm-boxes vm-clean vm-validate

# A shell that became root with plain `su` lacks these.
export PATH := $(PATH):/usr/sbin:/sbin

# The environment is there for development, and for `run` only on distributions whose click is too
# old; both are made from the system's Python, to which bcc's bindings belong.
VENV := .venv/bin
PYTHON = $$(test -x $(VENV)/python && echo $(VENV)/python || echo /usr/bin/python3)
# Under sudo nothing may be left behind in the tree that its owner cannot remove.
ROOT := $(shell test "$$(id -u)" = 0 || echo sudo env PYTHONDONTWRITEBYTECODE=1)
PYTEST = $(VENV)/python -m pytest $(if $(ROOT),-p no:cacheprovider)
C_FILES = $$(find bpf_programs -name '*.[ch]')
# What others put below vagrant/ (boxes, machines) is not ours to check.
SHELL_FILES = .ci/run $$(find scripts -name '*.sh') $(wildcard vagrant/*.sh)
# What the lab asks for, also through sudo; what is not set is not passed on.
VM_SETTINGS = KERNEL TESTS JOBS LIMIT UP_LIMIT KEEP SAVE MIRROR PIP_CERT http_proxy https_proxy \
	no_proxy $(filter NETBPF_VM_%,$(.VARIABLES))
LAB = $(ROOT) env PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=vagrant \
	$(foreach name,$(VM_SETTINGS),$(if $($(name)),$(name)="$$$(name)")) /usr/bin/python3 -m lab

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | \
		while IFS='|' read -r name text; do printf '%-11s %s\n' "$$name" "$$text"; done

setup: ## install what netbpf needs to run, unless it is there
	@scripts/setup.sh run

setup-dev:
	@scripts/setup.sh dev

setup-test:
	@scripts/setup.sh test

setup-bench:
	@scripts/setup.sh bench

setup-vm:
	@scripts/setup.sh vm

run: setup ## install what is missing and run the demonstration (root)
	@$(ROOT) $(PYTHON) -m netbpf demo

demo: run ## the same as run

test: setup-test ## all tests: unit, contract and live (root)
	@$(ROOT) $(VENV)/python -m tests.lanes $(if $(ROOT),-p no:cacheprovider)

unit: setup-dev ## tests without root, kernel and bcc
	@$(VENV)/python -m pytest tests/unit

contract: setup-dev ## the rules that every tool keeps
	@$(VENV)/python -m pytest tests/contract

live: setup-test ## does each tool tell the truth about known traffic? (root)
	@$(ROOT) $(PYTEST) -m live

fuzz: setup-dev ## damaged input for every parser: CASES=1000 TARGETS="elf go"
	@$(VENV)/python -W ignore -m tests.fuzz $(TARGETS)

vm: setup-vm ## live tests on other kernels, in virtual machines: KERNEL=6.12 (root)
	@$(LAB)

vm-boxes: setup-vm ## only build the boxes of those machines: KERNEL=all (root)
	@$(LAB) --boxes-only

vm-clean: setup-vm ## remove machines that KEEP=1 or a killed run left (root)
	@$(LAB) --clean

vm-validate: ## have Vagrant check vagrant/Vagrantfile: no daemon, no box
	@home=$$(mktemp -d) && cd vagrant && status=0 && \
		VAGRANT_HOME=$$home/home VAGRANT_DOTFILE_PATH=$$home/dot VAGRANT_CHECKPOINT_DISABLE=1 \
		VAGRANT_DEFAULT_PROVIDER=libvirt vagrant validate || status=$$?; \
		rm -rf "$$home"; exit $$status

lint: setup-dev ## every check that needs no kernel
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy --strict netbpf
	@clang-format --dry-run -Werror $(C_FILES)
	@if command -v shellcheck >/dev/null; then shellcheck $(SHELL_FILES); \
		else echo 'lint: no shellcheck here, shell scripts were not checked' >&2; fi

format: setup-dev ## format Python and C
	@$(VENV)/ruff check --fix .
	@$(VENV)/ruff format .
	@clang-format -i $(C_FILES)

man: setup-dev ## make the man pages in build/man
	@$(VENV)/python -m netbpf.docs build/man

readme: setup-dev ## renew the generated tables in README.md and docs
	@$(VENV)/python -m netbpf.docs --tables README.md docs/*.md

bench: setup-bench ## cost of a start beside the peers (root)
	@$(ROOT) /usr/bin/python3 bench/start.py

wheel: setup-dev ## make a source archive, and a wheel from it, in dist
	@$(VENV)/python -m build --no-isolation --outdir dist

clean: ## remove what was built; the virtual environment stays
	@rm -rf build dist netbpf.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
