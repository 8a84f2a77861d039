# make run, make test: each alone is enough on a fresh Debian 12. As root they install what is missing.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: help install run test lint bench docs fuzz fuzz-protocols matrix venv packages packages-deb packages-dev packages-matrix clean

# bcc is Debian's python3-bpfcc, so the interpreter is Debian's too. PyPI's "bcc" is another program.
PYTHON := /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := [test,lint,matrix]
# All that a collector may be asked for; the image and the Debian package have the same.
EXTRAS_INSTALL := [k8s,kafka,nats,otlp,percentiles,top]
EXTRAS_DEB := [deb]
PACKAGES := python3-bpfcc python3-venv iproute2
PACKAGES_DEB := $(PACKAGES) binutils
# What the tests compare with, what boots other kernels, and the browser that looks at the report.
PACKAGES_DEV := $(PACKAGES) bind9-dnsutils bpftool chromium clang clang-format cpio curl dnsmasq-base \
	dnsperf e2fsprogs gcc gcc-aarch64-linux-gnu git gnutls-bin influxdb kmod libbpf-dev libc6-dev libelf-dev llvm \
	logrotate nats-server nginx-light nftables openssl pahole qemu-system-x86 rpm tinyproxy-bin tshark util-linux \
	victoria-metrics wget wrk xz-utils zstd
# What builds kernels of our own (ci/build.py), and what boots those of another machine (ci/disk.py).
PACKAGES_MATRIX := $(PACKAGES_DEV) bc bison ccache flex g++ gcc-12-plugin-dev libssl-dev qemu-system-arm
# Every run ends: install, lint and all tests, real kernels in QEMU without KVM among them.
INSTALL_S := 1500
LINT_S := 600
TEST_S := 4200
BENCH_S := 3000
C_FILES = $(shell find kcompat guessers collector -name '*.bpf.c' -o -name '*.h')

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

help:
	@echo "make run     guess or remember the offsets of this kernel, collect flows with them (root)"
	@echo "make install what is needed to use it, and no more: .venv/bin/kcompat"
	@echo "make test    install what is missing, lint, all tests"
	@echo "make lint    ruff, mypy, import-linter, clang-format, pip-audit"
	@echo "make bench   the README's performance table"
	@echo "make deb     a Debian package: build/kcompat_VERSION_ARCHITECTURE.deb"
	@echo "make fuzz    the solver over 100,000 random layouts, the BTF and DWARF readers over flipped bytes: half an hour"
	@echo "make fuzz-protocols  atheris on the parsers of HTTP/1, HTTP/2, DNS and TLS, ten minutes each"
	@echo "make docs    the documentation as a site: build/site/index.html"
	@echo "make matrix  the kernel tests in every kernel of ci/kernels.py, in QEMU"
	@echo "make venv    for developers: the virtual environment with everything make test uses, browsers and QEMU too"

run: packages $(VENV)/.run
	@$(BIN)/python -m ci.demo

install: packages $(VENV)/.install
	@echo "$(BIN)/kcompat"

test: lint
	KCOMPAT_REQUIRE_KERNEL=$$([ $$(id -u) -eq 0 ] && echo 1 || echo 0) \
		timeout -k 30 $(TEST_S) $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: venv
	timeout $(LINT_S) $(BIN)/ruff check .
	timeout $(LINT_S) $(BIN)/mypy
	timeout $(LINT_S) $(BIN)/lint-imports
	timeout $(LINT_S) clang-format --dry-run -Werror $(C_FILES)
	@timeout $(LINT_S) $(BIN)/python -m ci.audit

bench: venv
	timeout -k 10 $(BENCH_S) $(BIN)/python -m benchmarks

deb: packages-deb $(VENV)/.deb
	@timeout $(BENCH_S) $(BIN)/python -m ci.deb

fuzz: venv
	KCOMPAT_LAYOUTS=$${KCOMPAT_LAYOUTS:-100000} $(BIN)/python -m pytest --timeout 0 tests/guessers/test_fuzz.py
	$(BIN)/python -m benchmarks.fuzz --seconds $${KCOMPAT_FUZZ_S:-180}

fuzz-protocols: venv
	@$(BIN)/python -m pip install --quiet --retries 3 --timeout 30 -e '.[fuzz]'
	$(BIN)/python -m benchmarks.fuzz_protocols --seconds $${KCOMPAT_FUZZ_S:-600}

docs: venv
	@$(BIN)/python -m pip install --quiet --retries 3 --timeout 30 -e '.[docs]'
	@$(BIN)/python docs/pictures.py
	@$(BIN)/kcompat datasets --markdown >docs/datasets.md
	@timeout $(LINT_S) $(BIN)/mkdocs build --quiet --strict && echo build/site/index.html

# What the run says is what make says, whatever becomes of the reports.
matrix: packages-matrix venv
	@status=0; $(BIN)/python -m ci run $(MATRIX_ARGS) || status=$$?; mkdir -p build; \
	$(BIN)/python -m ci report --markdown docs/kernel-matrix.md --junit build/matrix.xml --html build/matrix.html \
		$$(command -v chromium >/dev/null && echo --screenshot docs/kernel-matrix.png) || status=$${status/#0/$$?}; \
	exit $$status

venv: packages-dev $(VENV)/.test

# A virtual environment moved or copied from another clone still points there: it is made anew.
define make_venv
	@echo "installing $(1) into $(VENV)"
	@if ! $(BIN)/python -c 'import sys; sys.exit(sys.prefix != "$(CURDIR)/$(VENV)")' 2>/dev/null; then \
		rm -rf $(VENV); $(PYTHON) -m venv --system-site-packages $(VENV); \
	fi
	@timeout $(INSTALL_S) $(BIN)/python -m pip install --quiet --retries 3 --timeout 30 -e '$(1)'
	@touch $@
endef

$(VENV)/.run: pyproject.toml
	$(call make_venv,.)

$(VENV)/.install: pyproject.toml
	$(call make_venv,.$(EXTRAS_INSTALL))

$(VENV)/.deb: pyproject.toml
	$(call make_venv,.$(EXTRAS_DEB))

$(VENV)/.test: pyproject.toml
	$(call make_venv,.$(EXTRAS))

define install
	missing=""; \
	for package in $(1); do \
		status=$$(dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null || true); \
		[ "$$status" = installed ] || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
		echo "missing:$$missing"; \
		if [ $$(id -u) -ne 0 ]; then echo "as root: apt-get install$$missing" >&2; exit 2; fi; \
		timeout $(INSTALL_S) apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive timeout $(INSTALL_S) \
			apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 $$missing >/dev/null; \
	fi
endef

packages:
	@$(call install,$(PACKAGES))

packages-deb:
	@$(call install,$(PACKAGES_DEB))

packages-dev:
	@$(call install,$(PACKAGES_DEV))

packages-matrix:
	@$(call install,$(PACKAGES_MATRIX))

clean:
	rm -rf $(VENV) .cache build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
