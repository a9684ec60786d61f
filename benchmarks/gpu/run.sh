#!/usr/bin/env bash
# All that is to be measured on a GPU, in about 20 minutes: bash benchmarks/gpu/run.sh [OUT] [--tiny]
# Results are written to OUT (benchmarks/results/gpu) as they come; each part has its own time limit. PYTHON is the Python.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="source:benchmarks:tests${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" benchmarks/gpu/run.py "$@"
