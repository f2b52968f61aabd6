# The commands of this repository; each makes the virtual environment it needs, once.
#   make quickstart   digits, end to end: train, report, export, ask the exported model
#   make test         the suite on TensorFlow, then the pure Keras part on JAX
#   make test-slow    what `make test` leaves out: further options, killed runs, full disks, real weights
#   make lint         formatting, lint rules, types, layering
#   make serving-versions  the served model on the C libraries of older TensorFlow releases
#   make zoo          docs/zoo.md, out of the table of models and the catalog of weights
#   make recipes      docs/recipes.md, out of the protocols and the measured results
#   make clean        removes what the others made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# `layers`, `models`, `checkpoints`, `zoo` and `inspection` run on every backend; so do their tests.
# Steps begin ahead on JAX alone.
PURE_KERAS_TESTS := $(wildcard $(foreach part,layers resampling models checkpoints zoo inspection steps_ahead,tests/test_$(part)*.py))
PURE_KERAS_DOCTESTS := keras_vit/layers keras_vit/models keras_vit/checkpoints keras_vit/zoo keras_vit/inspection

SERVING_VERSIONS := 2.19 2.20

# Less of TensorFlow's start-up notes.
export TF_CPP_MIN_LOG_LEVEL := 3

# Asks the exported model as a consumer does: with TensorFlow, without Keras and without keras_vit.
define ASK
import sys
import tensorflow as tf
from sklearn.datasets import load_digits

seven = load_digits().images[7] * 255 / 16
image = tf.io.encode_png(tf.cast(seven[..., None], tf.uint8))
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
answer = serve(image_bytes=image[None])
print(f"\n{sys.argv[1]}, asked about a picture of a 7:")
for name, score in zip(answer["classes"][0].numpy(), answer["scores"][0].numpy()):
    print(f"  {score:7.2%}  {name.decode()}")
endef
export ASK

.PHONY: quickstart test test-slow lint serving-versions zoo recipes clean

quickstart: $(VENV)/recipes-installed
	$(BIN)/python recipes/digits.py
	folder=$$($(BIN)/keras-vit export --model runs/digits-5-to-9 --output saved_models/digits) \
	    && $(BIN)/python -c "$$ASK" "$$folder"

# Each process takes half of the tests in their order, so that most modules share in one process what
# they have computed, and then work from the other's half. JAX compiles each operation of each test:
# without the optimizer of XLA in less time. `test-slow` has it.
test: $(VENV)/dev-installed
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"
	KERAS_BACKEND=jax JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal \
	    -m "not slow" $(PURE_KERAS_TESTS) $(PURE_KERAS_DOCTESTS)

# Modules share what they have computed, so each stays in one process.
test-slow: $(VENV)/dev-installed
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow
	KERAS_BACKEND=jax $(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow $(PURE_KERAS_TESTS)

lint: $(VENV)/dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

serving-versions: $(VENV)/dev-installed $(SERVING_VERSIONS:%=build/tensorflow-%/installed)
	for version in $(SERVING_VERSIONS); do \
	    echo "TensorFlow $$version's C library:"; \
	    KERAS_BACKEND=tensorflow KERAS_VIT_TENSORFLOW_LIBRARY=build/tensorflow-$$version/tensorflow \
	        $(BIN)/python -m pytest -q tests/test_serving_consumer.py || exit 1; \
	done

zoo: $(VENV)/dev-installed
	$(BIN)/python docs/make_zoo.py

recipes: $(VENV)/dev-installed
	$(BIN)/python docs/make_recipes.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is older than pyproject.toml after a change of the dependencies: then install again.
$(VENV)/recipes-installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --editable ".[recipes]"
	touch $@

$(VENV)/dev-installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --editable ".[dev]"
	touch $@

# The library alone, about 2 GB each: none of its Python is imported, so any Python's wheel does.
build/tensorflow-%/installed: | $(VENV)/dev-installed
	rm -rf $(@D)
	$(PIP) install --quiet --no-deps --only-binary=:all: --python-version 3.12 \
	    --target $(@D) "tensorflow==$*.*"
	touch $@
