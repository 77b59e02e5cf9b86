# SpatialFlow on Detectron2. `make` lists the targets.

# The Python, 3.11 to 3.13, to make .venv from; a Detectron2 or PyTorch that it can import is used as
# it is.
PYTHON ?= python3
# A folder of wheels that `make wheels` made: install from it, without a network.
WHEELS ?=
# Further arguments: make test ARGS="-k merge -x", make demo ARGS="MODEL.DEVICE cuda"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install wheels demo demo-street test matrix lint format docs results measure doctor \
	clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r target text; do printf '%-16s %s\n' "$$target" "$$text"; done

install: $(STAMP) ## make .venv with everything in it (again only when what it needs has changed)

$(STAMP): pyproject.toml constraints.txt tools/install.py tools/pip_calls.py tools/repack.py
	$(PYTHON) tools/install.py --venv $(VENV) $(if $(WHEELS),--wheels $(WHEELS))
	@touch $@

wheels: ## collect everything for an installation without a network in wheels/ (WHEELS=FOLDER)
	$(PYTHON) tools/install.py --fresh --venv $(VENV) --collect $(or $(WHEELS),wheels)

TOY := --config-file configs/toy/spatialflow_toy_lite0.yaml
demo: ## install, train on toy scenes, evaluate, write pictures (CPU, minutes)
	@test -f $(STAMP) || echo "make demo installs first: 3.3 GB to download, 6 GB of disk in $(VENV)."
	@echo "Training takes 5 to 10 minutes on two cores, and 1.5 GB of memory."
	@$(MAKE) --no-print-directory install
	$(BIN)/spatialflow toy
	$(BIN)/spatialflow train $(TOY) $(ARGS)
	$(BIN)/spatialflow draw $(TOY) --output output/toy_lite0/pictures \
		--opts MODEL.WEIGHTS output/toy_lite0/model_final.pth
	@echo "The pictures are in output/toy_lite0/pictures. What next:"
	@echo "  source $(BIN)/activate"
	@echo "  spatialflow demo --input street.jpg --output drawn    segment a picture of your own"
	@echo "  spatialflow train $(TOY) --eval-only \\"
	@echo "      MODEL.WEIGHTS output/toy_lite0/model_final.pth TEST.SAVE_PREDICTIONS True"
	@echo "  spatialflow report output/toy_lite0                   see where PQ was lost"
	@echo "  notebooks/own_data.ipynb, README.md                   train on your data"

# CAMVID: CamVid in one of its two public layouts, or in COCO panoptic format, which has this JSON.
CAMVID ?=
STREET ?= configs/camvid/spatialflow_lite0.yaml
STREET_OUTPUT ?= output/street
STREET_IS_PANOPTIC := $(wildcard $(CAMVID)/panoptic_train.json)
STREET_DATA := $(abspath $(if $(STREET_IS_PANOPTIC),$(CAMVID),datasets/camvid_panoptic))
street_entry = ["camvid_panoptic_$1", "$(STREET_DATA)/$1", \
	"$(STREET_DATA)/panoptic_$1", "$(STREET_DATA)/panoptic_$1.json"]
STREET_OPTS = DATASETS.REGISTER '[$(call street_entry,train), $(call street_entry,val)]' \
	OUTPUT_DIR $(STREET_OUTPUT)
demo-street: $(STAMP) ## train on CamVid, CAMVID=FOLDER, evaluate, write pictures (CPU, half an hour)
	@test -d "$(CAMVID)" || { echo "error: name CamVid's folder: make demo-street CAMVID=FOLDER;" \
		"datasets/README.md shows what is in it" >&2; exit 2; }
	$(if $(STREET_IS_PANOPTIC),,$(BIN)/spatialflow convert camvid --root "$(CAMVID)" \
		--output $(STREET_DATA) --splits train val)
	$(BIN)/spatialflow train --config-file $(STREET) $(STREET_OPTS) $(ARGS)
	$(BIN)/spatialflow draw --config-file $(STREET) --output $(STREET_OUTPUT)/pictures \
		--opts $(STREET_OPTS) MODEL.WEIGHTS $(STREET_OUTPUT)/model_final.pth

# Two processes; the tests of a file stay together, since they may share a slow fixture.
test: $(STAMP) ## run the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

matrix: $(STAMP) ## the suite with the Pythons, numpys and PyTorches of docs/SUPPORT.md (hours)
	$(BIN)/python tools/matrix.py $(ARGS)

lint: $(STAMP) ## check style, common mistakes, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(STAMP) ## format the code, mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## write the reference of the Python API into build/docs
	$(BIN)/python tools/make_docs.py build/docs

results: $(STAMP) ## write the numbers of measured.json into README.md, MODEL_ZOO.md and docs
	$(BIN)/python tools/fill_results.py

MEASURED ?= output/measured
measure: $(STAMP) ## measure a CUDA machine part by part (an hour; CAMVID=FOLDER, ARGS="--part NAME")
	$(BIN)/python tools/measure.py --out $(MEASURED) \
		$(if $(CAMVID),--camvid "$(abspath $(CAMVID))") $(ARGS)

doctor: $(STAMP) ## say what is installed, what is missing, and what to do about it
	$(BIN)/spatialflow doctor

clean: ## remove caches and builds (not .venv, datasets or output)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv too
	rm -rf $(VENV)
