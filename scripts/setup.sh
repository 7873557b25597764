# Sourced by demo.sh and test.sh: an environment with everything in the given requirement files.
# Uses the active virtual or conda environment; makes ./.venv where none is active.
#   setup requirements.txt [more files]
setup() {
  if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    [ -x .venv/bin/python ] || "${PYTHON:-python3}" -m venv .venv
    source .venv/bin/activate
  fi
  local stamp done_file
  stamp=$(cat "$@" | sha256sum | cut -c1-16)
  done_file="$(python -c 'import sys; print(sys.prefix)')/.puzzle-cam-$stamp"
  [ -e "$done_file" ] && return
  local file
  for file in "$@"; do
    # pydensecrf is compiled at installation; without a C++ compiler the CRF runs in PyTorch.
    grep -v pydensecrf "$file" | python -m pip install --quiet --disable-pip-version-check -r /dev/stdin
    if grep -q pydensecrf "$file"; then
      grep pydensecrf "$file" | python -m pip install --quiet --disable-pip-version-check -r /dev/stdin \
        >"${TMPDIR:-/tmp}/pydensecrf-build.log" 2>&1 \
        || echo "note: pydensecrf did not build (no C++ compiler?); the CRF will run in PyTorch"
    fi
  done
  touch "$done_file"
}
