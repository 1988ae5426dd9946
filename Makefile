# make env | demo | test | lint     (STACK=openmmlab for the original OpenMMLab releases, STACK=light without ops)
# What the demo runs on: the stack that was asked for, else one that is built already, else the one built soonest.
ifdef STACK
DEMO_PYTHON = $(ENV_PYTHON)
else
DEMO_PYTHON = $$(tools/make_env.sh --ready onedl || tools/make_env.sh --ready openmmlab || \
	tools/make_env.sh light)/bin/python
endif
STACK ?= onedl
export STACK
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

# The path of the stack's environment, which is built when it is missing.
ENV_PYTHON = $$(tools/make_env.sh $(STACK))/bin/python
# Where every test can be collected, which needs neither ops nor mmdet.
LIGHT_TESTS = tests/test_light_stack.py tests/test_compat.py tests/tools/test_demo.py tests/models/selfsup tests/gpu

.PHONY: help env demo test test-wheel test-light test-gpu test-slow test-faults lint format docs wheel

help:
	@echo 'make env     build the Python environment and install poa_mm into it (STACK=onedl|openmmlab|light)'
	@echo 'make demo    pre-train on handwritten digits, extract, score every subnet: minutes on one CPU core'
	@echo '             (CONFIG=configs/poa/swint_digits.py or resnet_digits.py: another family)'
	@echo 'make test    run the tests (test-slow: those that take minutes; test-faults: kills, signals, NaN)'
	@echo 'make test-light  what pre-training, extraction and evaluation need, without ops and mmdet (STACK=light)'
	@echo 'make test-gpu    what runs on a GPU (STACK=light: with a newer torch)'
	@echo 'make test-wheel  build a wheel, install it elsewhere, run the demo from there'
	@echo 'make lint    check style and types'
	@echo 'make docs    build the documentation into docs/_build; make wheel: a package into dist/'

env:
	@env=$$(tools/make_env.sh $(STACK)) || exit 1; \
	$$env/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . && \
	echo "ready; activate it with this line:" && echo "source $$env/bin/activate"

# One thread: as fast for a network this small, and much faster when the machine has other work.
demo:
	@python=$(DEMO_PYTHON) && OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $$python tools/demo.py $(CONFIG)

test:
	@python=$(ENV_PYTHON) && $$python -m pytest -q

test-light:
	@python=$$(tools/make_env.sh light)/bin/python && $$python -m pytest -q -o addopts="-m 'not slow'" $(LIGHT_TESTS)

# Each test is skipped, and says so, where there is no GPU.
test-gpu:
	@python=$(ENV_PYTHON) && CUBLAS_WORKSPACE_CONFIG=:4096:8 $$python -m pytest -q -o addopts= -rs -m gpu tests/gpu

# Builds a wheel, installs it into an environment of its own and runs the demo from there.
test-wheel:
	@python=$(ENV_PYTHON) && $$python -m pytest -q -n 0 -m slow tests/test_packaging.py

test-slow:
	@python=$(ENV_PYTHON) && $$python -m pytest -q -n 0 -m slow

test-faults:
	@python=$(ENV_PYTHON) && $$python -m pytest -q -n 0 -m 'slow or not slow' tests/engine tests/tools/test_train.py

lint:
	@python=$(ENV_PYTHON) && $$python -m ruff check . && $$python -m ruff format --check . && $$python -m mypy

format:
	@python=$(ENV_PYTHON) && $$python -m ruff check --fix . ; $$python -m ruff format .

docs:
	@python=$(ENV_PYTHON) && $$python -m sphinx -W --keep-going -q -b html docs docs/_build

wheel:
	@python=$(ENV_PYTHON) && $$python -m build --no-isolation --outdir dist . && $$python -m twine check dist/*
