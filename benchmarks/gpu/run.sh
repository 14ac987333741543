#!/usr/bin/env bash
# Install the wheels that were brought along, offline, into a folder of their own; then run the kit (kit.py says what).
#     bash benchmarks/gpu/run.sh [--device cpu --size tiny ...]
# OUT: folder for the results. PYTHON: the Python that has torch. WHEELS: folder of the wheels, if there are any.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
wheels=${WHEELS:-.wheels}
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

if compgen -G "$wheels/*.whl" >/dev/null; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    if ! "$python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile \
        --no-index --no-deps --target "$site" "$wheels"/*.whl; then
        for wheel in "$wheels"/*.whl; do "$python" -m zipfile -e "$wheel" "$site"; done  # a Python without pip
    fi
    export PYTHONPATH="$site:$PYTHONPATH"
fi
"$python" -m benchmarks.gpu.kit --out "${OUT:-gpu-results}" "$@"
