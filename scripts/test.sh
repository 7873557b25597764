#!/usr/bin/env bash
# Set up an environment if none is active and run the tests: no GPU, no network, no data needed.
# Machine: 2 CPU cores. Time: 8 to 20 minutes after the installation, by the cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
setup requirements.txt requirements-dev.txt
# A reference of the CRF's tests, to be compiled: without it they are skipped.
python -c "import pydensecrf.densecrf" 2>/dev/null \
  || install_from requirements-crf.txt >"${TMPDIR:-/tmp}/pydensecrf-build.log" 2>&1 \
  || echo "note: pydensecrf did not build (no C++ compiler?)"
ruff check .
ruff format --check .
mypy
python -m pytest -n 2 "$@"
