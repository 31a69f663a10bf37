# Two commands are enough: `make demo` and `make test`. `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv demo real test test-all check lint audit format docs extras pacs wheel wheelhouse clean

PYTHON ?= python3
V := .venv
PY := $(V)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# a file of tests stays on one core: what it makes once is made once; two of them leave no core for more threads; the
# order is that of tests/conftest.py, long files first
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
WHEELS := $(or $(WHEELHOUSE),wheelhouse)

# of transformers, beside the pinned one: its folder is put in front of the packages, whose versions suit both
NEWER := 5.24.0
NEWER_TESTS := $(wildcard tests/test_model_*.py tests/test_families_*.py tests/test_qwen*.py tests/test_gemma*.py \
	tests/test_training*.py) tests/test_distillation.py tests/test_recipes_real.py tests/test_pipeline_foreign.py

# With WHEELHOUSE=folder everything but the torch of TORCH_INDEX comes from that folder and pip opens no connection.
ALONE := env -u PIP_FIND_LINKS -u PIP_INDEX_URL -u PIP_EXTRA_INDEX_URL $(PIP)
ifdef WHEELHOUSE
INSTALL := $(ALONE) install --no-index --find-links "$(WHEELHOUSE)" -c constraints.txt
else
INSTALL := $(PIP) install -c constraints.txt
endif

# The pin torch==2.x.y takes a build 2.x.y+cpu too. It asks for no GPU libraries, and later installs leave it alone.
ifdef TORCH_INDEX
TORCH := $(V)/.torch
TORCH_FROM := $(if $(findstring :/,$(TORCH_INDEX)),--index-url,--no-index --find-links) "$(TORCH_INDEX)"
SIZE := about 1 GB into .venv, and the torch of TORCH_INDEX
NEEDED_MB := 4000
else
SIZE := about 5.5 GB into .venv, 3.4 GB of it GPU libraries of torch
NEEDED_MB := $(if $(WHEELHOUSE),6500,9000)
endif
TO_FETCH := $(if $(TORCH_INDEX),0.3 GB to fetch: half a minute,2.8 GB to fetch: 5 min) at 10 MB/s; then as long to unpack

ifneq (,$(filter real,$(MAKECMDGOALS)))
$(if $(DATA),,$(error make real DATA=FOLDER: give the folder of your data, of clinkd data import or any form of docs/DATA.md))
endif

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "WHEELHOUSE=folder   install from that folder, with no network (collect it with make wheelhouse)"
	@echo "TORCH_INDEX=place   torch alone comes from that folder or index: a build without GPU libraries (docs/INSTALL.md)"
	@echo "SPICE_JARS=folder   extras takes the jars of SPICE from that folder, with no network"
	@echo "PYTHON=program      the Python, 3.11 or newer, that makes .venv (now $(PYTHON))"

demo: $(V)/.run  ## install, then the whole method on drawn images, in minutes
	$(V)/bin/clinkd run demo

real: $(V)/.eyes  ## install with image features (the extra eyes), then learn from your own: make real DATA=FOLDER
	$(V)/bin/clinkd run real --set data.path="$(DATA)"

venv: $(V)/.dev  ## install into .venv, with the tools of the checks

test: lint docs  ## install, then every check, with a slice of each slow one
	$(PYTEST)

test-all: lint docs $(V)/.newer  ## the same with the slow checks whole and covered lines counted, then models by the newer transformers
	$(PYTEST) --cov --cov-report=term -m "slow or not slow"
	PYTHONPATH="$(V)/transformers-$(NEWER)" $(PY) -c 'import transformers as t; assert t.__version__ == "$(NEWER)", t'
	PYTHONPATH="$(V)/transformers-$(NEWER)" $(PYTEST) $(NEWER_TESTS)

check: test  ## the same as test

lint: $(V)/.dev  ## format, lint, types and floors, and the Containerfile
	$(V)/bin/ruff format --check
	$(V)/bin/ruff check
	$(V)/bin/mypy
	$(V)/bin/lint-imports
	$(V)/bin/hadolint Containerfile

audit: $(V)/.dev  ## licences of all packages, and known vulnerabilities where the index can be reached
	$(INSTALL) --no-build-isolation --quiet --editable '.[audit]'
	$(PY) -m tests.audit

format: $(V)/.dev  ## put the code into shape
	$(V)/bin/ruff format
	$(V)/bin/ruff check --fix

docs: $(V)/.dev  ## build the pages of docs/ as a site, into site/; a broken link fails
	$(V)/bin/mkdocs build --strict --quiet

extras: $(V)/.run  ## install what pip cannot: the jars of SPICE, by Maven, and Chromium, by apt-get as root
	$(V)/bin/clinkd spice install $(if $(SPICE_JARS),--from "$(SPICE_JARS)")
	@$(foreach name,$(CHROMIUMS),command -v $(name) >/dev/null || ) $(install_chromium)

pacs:  ## install a real archive and judges of DICOM objects for the tests, by apt-get as root; no service is started
	@$(install_pacs)

# What an earlier build left in build/ would be packed, too.
wheel: $(V)/.made  ## build dist/clinkd-VERSION-py3-none-any.whl, to install elsewhere (docs/INSTALL.md)
	$(INSTALL) setuptools
	rm -rf build dist/clinkd-*.whl
	SOURCE_DATE_EPOCH=$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || echo 315532800)} \
		$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .
	cp constraints.txt dist
	@echo "elsewhere: pip install -c constraints.txt $$(cd dist && ls clinkd-*.whl)   (both are in dist)"

wheelhouse: $(V)/.made  ## collect every wheel into WHEELHOUSE (wheelhouse), for a machine without network
	$(if $(TORCH_INDEX),$(call check_torch_index))
	$(if $(TORCH_INDEX),$(ALONE) download --no-deps -d "$(WHEELS)" -c constraints.txt $(TORCH_FROM) torch)
	$(PIP) wheel --wheel-dir "$(WHEELS)" $(if $(TORCH_INDEX),--find-links "$(WHEELS)") -c constraints.txt \
		pip setuptools '.[dev,docs,bitsandbytes]'
	$(PIP) download --quiet --no-deps -d "$(WHEELS)" transformers==$(NEWER)
	rm -f "$(WHEELS)"/clinkd-*.whl
	@echo "$$(ls "$(WHEELS)" | wc -l) wheels, $$(du -sh "$(WHEELS)" | cut -f1), for $$($(PY) -c 'import platform as p; print("Python", p.python_version(), "on", p.system(), p.machine())')"
	@echo "carry the folder over, then: make demo WHEELHOUSE=$(WHEELS)"

clean:  ## remove .venv and what checks and builds left; runs/ and wheelhouse/ stay
	rm -rf $(V) site .coverage .mypy_cache .pytest_cache .ruff_cache .import_linter_cache src/*.egg-info build dist

# A stamp is written last, so an install that was broken off is done again.
$(V)/.made:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON): not found; install Python 3.11 or newer, or give PYTHON=program" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is $$($(PYTHON) -V): 3.11 or newer is wanted; give another with PYTHON=program" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(V)
	@touch $@

# --upgrade: 2.x.y+cpu counts as newer than a 2.x.y that is there already.
$(V)/.torch: $(V)/.made constraints.txt
	$(call check_torch_index)
	$(tell_size)
	$(ALONE) install --no-deps --upgrade -c constraints.txt $(TORCH_FROM) torch
	@touch $@

# setuptools is installed first and used without build isolation, so that the build is pinned and works offline.
$(V)/.run: $(V)/.made $(TORCH) pyproject.toml constraints.txt
	$(call check_wheelhouse)
	$(tell_size)
	$(INSTALL) setuptools
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

# The folder is asked for first, not after minutes.
$(V)/.eyes: $(V)/.run
	$(INSTALL) --no-build-isolation --editable '.[eyes]'
	@touch $@

$(V)/.dev: $(V)/.run
	$(INSTALL) --no-build-isolation --editable '.[dev,docs]'
	@touch $@

# and the extra that needs seconds at each start
$(V)/.newer: $(V)/.dev
	$(INSTALL) --no-build-isolation --editable '.[bitsandbytes]'
	$(subst -c constraints.txt,,$(INSTALL)) --no-deps --upgrade --target "$(V)/transformers-$(NEWER)" transformers==$(NEWER)
	@touch $@

# Only pictures of pages need a browser, so where there is none the rest goes on.
CHROMIUMS := chromium chromium-browser google-chrome
define install_chromium
{ if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	apt-get install -y -qq chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium >/dev/null; }; \
	else false; fi || echo "extras: no Chromium here; on Debian, as root: apt-get install chromium" >&2; }
endef

# Debian starts a service as it installs it, but where policy-rc.d says no (101); where Orthanc was there before, it stays
# as it is.
PACS_PACKAGES := orthanc orthanc-dicomweb dcmtk dicom3tools pixelmed-apps
POLICY := /usr/sbin/policy-rc.d
define install_pacs
if ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ]; then \
	echo "pacs: wants Debian or Ubuntu, as root: there give make pacs, or install $(PACS_PACKAGES) in another way;" \
		"where they are absent, tests that need them are skipped" >&2; exit 2; fi; \
echo "installs $(PACS_PACKAGES), with what they need; apt-get tells how much"; \
dpkg -s orthanc >/dev/null 2>&1 && was=there || was=absent; \
[ -e "$(POLICY).clinkd" ] || [ ! -e "$(POLICY)" ] || mv "$(POLICY)" "$(POLICY).clinkd"; \
trap 'rm -f "$(POLICY)"; [ ! -e "$(POLICY).clinkd" ] || mv "$(POLICY).clinkd" "$(POLICY)"' EXIT; \
printf '#!/bin/sh\nexit 101\n' > "$(POLICY)"; chmod 755 "$(POLICY)"; \
export DEBIAN_FRONTEND=noninteractive; \
apt-get install -y --no-install-recommends $(PACS_PACKAGES) || \
	{ apt-get update; apt-get install -y --no-install-recommends $(PACS_PACKAGES); }; \
[ $$was = there ] || ! command -v systemctl >/dev/null || systemctl disable orthanc || true; \
echo "pacs: installed; the service of Orthanc was not started, the tests start one of their own"
endef

define check_wheelhouse
@$(if $(WHEELHOUSE),ls "$(WHEELHOUSE)"/torch-*.whl >/dev/null 2>&1 || { echo "WHEELHOUSE=$(WHEELHOUSE): no wheels there; collect them with make wheelhouse on a machine with network" >&2; exit 2; },:)
endef

define check_torch_index
@case "$(TORCH_INDEX)" in *:/*) ;; *) ls "$(TORCH_INDEX)"/torch-*.whl >/dev/null 2>&1 || { echo "TORCH_INDEX=$(TORCH_INDEX): no wheel of torch there; give a folder that holds one, or the address of an index" >&2; exit 2; }; esac
endef

# Before the large packages, so only where torch is not there yet.
define tell_size
@ls -d $(V)/lib*/python*/site-packages/torch >/dev/null 2>&1 || { echo "installs $(SIZE)"; \
	$(if $(WHEELHOUSE),,echo "$(TO_FETCH)";) \
	$(if $(TORCH_INDEX),,echo "without GPU libraries: make TORCH_INDEX=place ..., see docs/INSTALL.md";) \
	free=$$(df -Pm . | awk 'NR == 2 { print $$4 }'); [ "$$free" -ge $(NEEDED_MB) ] || \
	{ echo "$(CURDIR): $$free MB of disk are free, and .venv wants $(NEEDED_MB) while it is made; make room" >&2; exit 2; }; }
endef
