# make ablation: the first table.  make test: lint and the whole suite.  make bench: the speed suites.
# make oracles: has the references of tests/oracles compute their numbers again, and compares.
VENV := .venv
PYTHON := $(VENV)/bin/python
WORKDIR ?= runs/first
BENCH_WORKDIR ?= runs/bench
# The CPU build of PyTorch, the peer of `make bench`, has an index of its own.
TORCH_INDEX ?= --extra-index-url https://download.pytorch.org/whl/cpu
# Linux gives a large array to every call anew, in pages whose time grows faster than the work.
LARGE_PAGES := glibc.malloc.hugetlb=1
# Where it is set, every process compiles the source of all it imports: 14 seconds for a worker's.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: ablation test lint bench oracles clean

ablation: $(VENV)/core.ok
	$(PYTHON) -m experiments.ablate --config=configs/ablations/first.py --workdir=$(WORKDIR)

test: $(VENV)/test.ok lint
	$(PYTHON) -m pytest -n 2 --dist worksteal -m "not optimised"
	$(PYTHON) -m pytest -n 2 --dist worksteal -m optimised $$(grep -l "mark.optimised" tests/test_*.py)

lint: $(VENV)/test.ok
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

bench: $(VENV)/bench.ok
	$(PYTHON) -m experiments.bench --suite=step --workdir=$(BENCH_WORKDIR)
	$(PYTHON) -m experiments.bench --suite=attention --workdir=$(BENCH_WORKDIR)
	GLIBC_TUNABLES=$(LARGE_PAGES) $(PYTHON) -m experiments.bench --suite=length --workdir=$(BENCH_WORKDIR)
	$(PYTHON) -m experiments.bench --suite=weights --workdir=$(BENCH_WORKDIR)

# One environment each: with Triton installed, code of transformers fails on a CPU.
oracles: $(VENV)/oracles/huggingface.ok $(VENV)/oracles/fla.ok $(VENV)/oracles/peft.ok
	$(VENV)/oracles/huggingface/bin/python tests/oracles/make.py huggingface --check
	$(VENV)/oracles/fla/bin/python tests/oracles/make.py fla --check
	$(VENV)/oracles/peft/bin/python tests/oracles/make.py peft --check

$(VENV)/core.ok: requirements.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet uv
	$(PYTHON) -m uv pip install --quiet --python $(PYTHON) -r requirements.txt
	touch $@

$(VENV)/test.ok: $(VENV)/core.ok pyproject.toml
	$(PYTHON) -m uv pip install --quiet --python $(PYTHON) -r requirements.txt -r pyproject.toml --extra test
	touch $@

$(VENV)/bench.ok: $(VENV)/core.ok
	$(PYTHON) -m pip install --quiet torch==2.13.0 $(TORCH_INDEX)
	touch $@

$(VENV)/oracles/%.ok: tests/oracles/%.txt
	python3 -m venv $(VENV)/oracles/$*
	$(VENV)/oracles/$*/bin/python -m pip install --quiet -r $< $(TORCH_INDEX)
	touch $@

clean:
	rm -rf $(VENV)
