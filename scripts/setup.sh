# Sourced by scripts: an environment with the given requirement files, their --help, the tables' options.
# Takes the active virtual or conda environment, else ./.venv, which demo.sh and test.sh make.
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -e .venv/bin/activate ]; then
  source .venv/bin/activate
fi

# setup requirements.txt [more files]: installs them; makes ./.venv where no environment is
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
    install_from "$file"
  done
  touch "$done_file"
}

# no_options "$@": of a script that variables set up, --help is what it says of itself
no_options() {
  [ $# -gt 0 ] || return 0
  case $1 in
    -h | --help) sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"; exit ;;
  esac
  echo "error: $1: ${0##*/} takes no options; give them to a stage's own script" >&2
  exit 2
}

# table_options "$@": what SMALL, DATA, RUNS, SEEDS, BACKBONES and GPUS say to tools/tables.py, in `options`
table_options() {
  options=(${DATA:+--data "$DATA"} ${RUNS:+--runs "$RUNS"} ${SEEDS:+--seeds $SEEDS}
    ${BACKBONES:+--backbones $BACKBONES} ${GPUS:+--gpus "$GPUS"})
  if [ "${SMALL:-0}" != 0 ]; then
    options+=(--small)
    setup requirements.txt
  fi
  case " ${options[*]-} $* " in
    *" --small "*) ;;
    *) options+=(--hr-cam) ;; # at full size CAM column and affinity labels are of the released code's map
  esac
}

# install_from requirements.txt: into the active environment, which of uv's making has no pip
install_from() {
  if python -c "import pip" >/dev/null 2>&1; then
    python -m pip install --quiet --disable-pip-version-check -r "$1"
  elif command -v uv >/dev/null; then
    uv pip install --quiet -r "$1"
  else
    echo "error: $1: the environment has no pip; give it one (python -m ensurepip), or install uv" >&2
    return 1
  fi
}
