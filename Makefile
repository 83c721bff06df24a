# make demo: install, train a small VAE, reconstruct; then 100 crystals of the bundled model as CIFs with their report.   make test: install, lint, types, tests.   make gpu: docs/performance.md
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
OUT ?= runs/gpu
MINUTES ?= 45
PAGES := README.md CHANGELOG.md checkpoints/README.md $(wildcard docs/*.md)

.PHONY: install install-dev demo test lint types docs fuzz mutants gpu wheel wheel-trial clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[evaluation]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

demo: install
	$(BIN)/python -c "import shutil; shutil.rmtree('$(DEMO)', ignore_errors=True)"
	$(BIN)/crystalvae train-vae experiment=prototypes/vae_dng output_dir=$(DEMO)
	$(BIN)/crystalvae evaluate ckpt_path=$(DEMO)/checkpoints/best.ckpt split=val num_crystals=500 output_dir=$(DEMO)/reconstruction
	$(BIN)/crystalvae sample num_samples=100 output_dir=$(DEMO)/crystals
	$(BIN)/crystalvae evaluate generated=$(DEMO)/crystals data=prototypes coverage.structure=0.4 coverage.composition=10 output_dir=$(DEMO)/evaluation
	@echo "demo: a small VAE trained in $(DEMO)/ (its reconstructions: $(DEMO)/reconstruction/report.html)"
	@echo "      100 new crystals of the bundled model: $(DEMO)/crystals/*.cif; their report: $(DEMO)/evaluation/report.html"

test: install-dev lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mdformat --check $(PAGES)

types: install-dev
	$(BIN)/basedpyright --pythonpath $(BIN)/python

docs: install-dev
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --jobs auto docs docs/_build

fuzz: install-dev
	$(BIN)/python tests/fuzz.py --count 1000 --seed 0

mutants: install-dev
	$(BIN)/python tests/mutants.py

gpu: install-dev
	$(BIN)/python benchmarks/gpu.py --out $(OUT) --minutes $(MINUTES) $(STEPS)

wheel: install-dev
	$(BIN)/python -m build

wheel-trial: install-dev
	.ci/wheel_trial $(BIN)/python

clean:
	rm -rf $(VENV) build dist docs/_build docs/_generated $(DEMO)
