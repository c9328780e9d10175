#!/bin/bash
# Runs the GPU check from the repository's root on a machine that has torch, Triton and transformers, without a network.
# Usage: bash benchmarks/gpu/run.sh WHEELS [options of benchmarks.gpu]
# WHEELS is the folder that `python -m benchmarks.gpu.carry WHEELS` wrote. Results: $OUT, else build/gpu.
set -u
wheels=$1
shift
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python=${PYTHON:-python3}
"$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl || exit 1
export PYTHONPATH=.:$site PYTHONUNBUFFERED=1
"$python" -m benchmarks.gpu --out "${OUT:-build/gpu}" "$@"
