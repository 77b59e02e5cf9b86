#!/bin/sh
# The steps of the Dockerfile, which are those of any fresh machine: install, look, segment a picture.
# PYTHON: to make the environment from; VENV: where to. Run in the repository's folder.
set -eu
"${PYTHON:-python3}" tools/install.py --venv "${VENV:-/opt/spatialflow}"
bin="${VENV:-/opt/spatialflow}/bin"
folder=$(mktemp -d)
"$bin/python" -c "import skimage.data, skimage.io; skimage.io.imsave('$folder/cup.png', skimage.data.coffee())"
"$bin/spatialflow" demo --input "$folder/cup.png" --output "$folder/drawn"
test -s "$folder/drawn/cup_panoptic.png" || { ls "$folder/drawn"; exit 1; }
rm -r "$folder"
