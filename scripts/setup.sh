# Sourced by demo.sh and test.sh: an environment with everything in the given requirement files.
# Uses the active virtual or conda environment; makes ./.venv where none is active.
#   setup requirements.txt [more files]
setup() {
  if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    source .venv/bin/activate
  fi
  local stamp done_file
  stamp=$(cat "$@" requirements-crf.txt | sha256sum | cut -c1-16)
  done_file="$(python -c 'import sys; print(sys.prefix)')/.puzzle-cam-$stamp"
  [ -e "$done_file" ] && return
  local file install=(python -m pip install --quiet --disable-pip-version-check)
  for file in "$@"; do
    "${install[@]}" -r "$file"
  done
  # Compiled at installation; without a C++ compiler the CRF runs in PyTorch.
  "${install[@]}" -r requirements-crf.txt >"${TMPDIR:-/tmp}/pydensecrf-build.log" 2>&1 \
    || echo "note: pydensecrf did not build (no C++ compiler?); the CRF will run in PyTorch"
  touch "$done_file"
}
