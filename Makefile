PYTHON ?= python3
VENV ?= .venv
LATEST_VENV ?= .venv-latest
NEWEST_VENV ?= .venv-newest
NEWEST_PYTHON ?= $(PYTHON)
LOCKS = $(wildcard requirements/py*.txt)
WORKERS ?= 2

# glibc gives freed memory back between training steps, and the page faults cost more than the
# arithmetic of a small model; these settings keep it.
export MALLOC_ARENA_MAX = 1
export MALLOC_MMAP_MAX_ = 0
export MALLOC_TRIM_THRESHOLD_ = 17179869184
export MALLOC_TOP_PAD_ = 268435456

.PHONY: demo evidence native-hybrid-evidence test test-latest test-heavy test-oldest test-newest lock lint kernels-report \
  kernels-benchmark kernels-hostile selection-benchmark turns-benchmark chaos data-benchmark planning loss-memory house clean

demo: $(VENV)/installed
	$(VENV)/bin/python -m train demo configs/demo.py

evidence: $(VENV)/installed
	$(VENV)/bin/python -m train evidence configs/evidence.py

# Native hybrid attention beside others, at small scale: docs/native_hybrid.md.
native-hybrid-evidence: $(VENV)/installed
	$(VENV)/bin/python -m train evidence configs/native_hybrid_evidence.py

# make test TESTS="tests/hydrahead_jax/ops -k rope" runs those only; DURATIONS=25 names the 25 longest.
TESTS ?= tests
DURATIONS ?= 10
PYTEST = pytest -n $(WORKERS) --dist worksteal --durations=$(DURATIONS) $(TESTS)

test: $(VENV)/installed lint
	$(VENV)/bin/python -m $(PYTEST) --cell test

# The newest jax, on Python 3.12 or 3.13, the kernels' interpreters, and the real TPU and GPU
# compilers. PyTorch parity tests, and the checks of annotated shapes and dtypes at run time, are in
# `make test` only.
test-latest: $(LATEST_VENV)/hardware_free
	$(LATEST_VENV)/bin/python -m $(PYTEST) --cell test-latest --jaxtyping-packages=

# What takes minutes of CPU, for a change of what it tests; not part of CI.
test-heavy: $(LATEST_VENV)/hardware_free
	$(LATEST_VENV)/bin/python -m $(PYTEST) -m heavy --cell test-heavy --jaxtyping-packages=

# PyTorch's clients with the oldest transformers that pyproject.toml allows; `make test` has the newest.
test-oldest: TESTS = tests/hydrahead_jax/interop/clients tests/hydrahead_jax/interop/test_torch_*.py
test-oldest: $(VENV)/oldest
	PYTHONPATH=$(abspath $<) $(VENV)/bin/python -m $(PYTEST)

$(VENV)/oldest: $(VENV)/installed
	rm -rf $@
	$(VENV)/bin/python -m pip install --quiet --no-compile --no-deps --target $@ \
	  transformers==$$(sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
	touch $@

# Unlocked: the newest releases that pyproject.toml and $(NEWEST_PYTHON) allow. PyTorch's clients, and
# each command once. make test-newest BEYOND="transformers" ignores that package's upper bound.
BEYOND ?=
test-newest: TESTS = tests/hydrahead_jax/interop tests/test_readme.py tests/train/commands/test_commands.py
test-newest:
	$(NEWEST_PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager \
	  --editable ".[dev,clients,hardware-free]"
	$(if $(BEYOND),$(NEWEST_VENV)/bin/python -m pip install --quiet --upgrade $(BEYOND))
	$(NEWEST_VENV)/bin/python -m pip freeze --exclude-editable
	@echo "Newer releases, which a package's bounds keep out:"
	$(NEWEST_VENV)/bin/python -m pip list --outdated
	$(NEWEST_VENV)/bin/python -m $(PYTEST)

# Resolves all locks anew, one a Python: the cells of `make test` and `make test-latest` together.
# make lock UPGRADE= keeps every version that pyproject.toml still allows.
UPGRADE ?= --upgrade
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade uv
	for version in 3.11 3.12 3.13; do \
	  .venv-lock/bin/uv pip compile --quiet $(UPGRADE) --no-annotate \
	    --custom-compile-command "make lock" --python-version $$version \
	    --python-platform x86_64-manylinux_2_31 --extra dev --extra clients --extra hardware-free \
	    pyproject.toml requirements/also.in \
	    --output-file requirements/py$$(echo $$version | tr -d .).txt || exit; \
	done

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# What the TPU and GPU compilers make of the kernels, into docs/kernels.md; needs neither device.
# make kernels-report OPS=attention REPORT="--implementation tpu" makes only those rows anew.
OPS ?= gated_delta attention attention_decode slot_attention
kernels-report: OPS += attention_decode_packed
kernels-report: $(LATEST_VENV)/hardware_free
	for op in $(OPS); do \
	  $(LATEST_VENV)/bin/python -m pallas_kernels.report --op $$op --all-targets $(REPORT) \
	    --json benchmarks/results/kernels_by_compiler.json --markdown docs/kernels.md || exit; \
	done

# Times on the device at hand, after each implementation's numbers were found right.
# make kernels-benchmark OPS="attention attention_decode" times those only.
kernels-benchmark: $(LATEST_VENV)/installed
	for op in $(OPS); do \
	  $(LATEST_VENV)/bin/python -m benchmarks.kernels --op $$op $(BENCHMARK) || exit; \
	done

$(VENV)/installed: pyproject.toml $(LOCKS)
	.ci/install $(VENV) $(PYTHON) dev,clients
	touch $@

$(LATEST_VENV)/installed: pyproject.toml $(LOCKS)
	python=$${LATEST_PYTHON:-$$(.ci/latest-python)} && .ci/install $(LATEST_VENV) $$python dev
	touch $@

%/hardware_free: %/installed
	.ci/install $* $*/bin/python dev,hardware-free
	touch $@

# Every implementation on every case, against float64: the tables of docs/numerics.md.
# make kernels-hostile HOSTILE="--op attention tpu" measures one of them.
kernels-hostile: $(LATEST_VENV)/installed
	JAX_PLATFORMS=cpu $(LATEST_VENV)/bin/python -m tests.pallas_kernels.kit.error_table $(HOSTILE)

# What the shipped configs take on their machines, into docs/planning.md; neither TPU nor GPU needed.
# make planning PLANS="qwen3_8b_3to1 --again" makes the rows of one config anew.
planning: $(LATEST_VENV)/hardware_free
	$(LATEST_VENV)/bin/python -m benchmarks.planning $(PLANS)

# What head scores cost beside forwards and the definition, and what KV-aware plans save.
selection-benchmark: $(VENV)/installed
	$(VENV)/bin/python -m benchmarks.selection --json selection_2_cpu_cores.json $(BENCHMARK)
	$(VENV)/bin/python -m benchmarks.allocation

# Many turns of agent sessions under a byte budget, at 16, 8 and 4 bits, into docs/kv_cache.md.
# make turns-benchmark TURNS=replayed runs the small teacher only.
turns-benchmark: $(VENV)/installed
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m benchmarks.kv_turns $(TURNS)

# The exported hybrid beside transformers' Qwen3 on the CPU: prefill, decoding, memory.
export-benchmark: $(VENV)/installed
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m benchmarks.torch_export $(BENCHMARK)

# Kills a short run at random moments, in one process and in two, and compares the parameters.
chaos: $(VENV)/installed
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m tests.chaos $(CHAOS)

# How fast text is prepared, planned and packed.
data-benchmark: $(VENV)/installed
	$(VENV)/bin/python -m benchmarks.data

# What the distillation loss over a vocabulary of 151,936 takes of a TPU's memory.
loss-memory: $(LATEST_VENV)/hardware_free
	$(LATEST_VENV)/bin/python -m benchmarks.loss_memory

# Rooms, the imports between them, and sizes.
house: $(VENV)/installed
	$(VENV)/bin/python -m tests.house

clean:
	rm -rf $(VENV) $(LATEST_VENV) $(NEWEST_VENV) .venv-lock runs
