# SpatialFlow on Detectron2. `make` lists the targets.

# The Python, 3.10 to 3.12, to make .venv from; a Detectron2 that it can import is used as it is.
PYTHON ?= python3
# Further arguments: make test ARGS="-k merge -x", make demo ARGS="MODEL.DEVICE cuda"
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo demo-street test lint format measure doctor clean distclean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r target text; do printf '%-16s %s\n' "$$target" "$$text"; done

install: $(STAMP) ## make .venv with everything in it (again only when what it needs has changed)

$(STAMP): pyproject.toml constraints.txt tools/install.py
	$(PYTHON) tools/install.py --venv $(VENV)
	@touch $@

TOY := --config-file configs/toy/spatialflow_toy.yaml
demo: $(STAMP) ## train on toy scenes, evaluate, write pictures (CPU, minutes)
	$(BIN)/spatialflow toy
	$(BIN)/spatialflow train $(TOY) $(ARGS)
	$(BIN)/spatialflow draw $(TOY) --output output/toy/pictures \
		--opts MODEL.WEIGHTS output/toy/model_final.pth

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

lint: $(STAMP) ## check style, common mistakes, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(STAMP) ## format the code, mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

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
