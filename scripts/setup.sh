# Sourced by run.sh and test.sh: creates or reuses .venv and installs the package into it, once, with the versions of
# constraints.txt, which are those that were tested.
#
#   setup [EXTRA…]   installs the package, editable, with `report` and the named extras of pyproject.toml
#
# A stamp beside the environment holds the hash of what was installed; while it matches, nothing is done.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV="$ROOT/.venv"

find_python() {
  local candidate
  for candidate in python3.13 python3.12 python3.11 python3 python; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python from 3.11 to 3.13 found" >&2
  echo "hint: install one, for instance python3.11 with its venv module" >&2
  return 2
}

setup() {
  local stamp="$VENV/.installed" wanted installed="" python extras uv
  extras=$(set -- report "$@"; IFS=,; echo "$*")
  wanted=$(cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt" "$ROOT/scripts/setup.sh" | cksum)
  [ -f "$stamp" ] && installed=$(cat "$stamp")
  case "$installed" in
    "$wanted $extras" | "$wanted $extras,"*) return 0 ;;
  esac

  # uv where present, else pip brings it into the environment.
  if command -v uv >/dev/null 2>&1; then
    uv=uv
    [ -x "$VENV/bin/python" ] || uv venv --quiet --python '>=3.11,<3.14' "$VENV" || return
  else
    if [ ! -x "$VENV/bin/python" ]; then
      python=$(find_python) || return
      "$python" -m venv "$VENV" || return
    fi
    uv="$VENV/bin/uv"
    [ -x "$uv" ] || "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$ROOT/constraints.txt" uv || return
  fi
  echo "installing into .venv (about 5 GB with PyTorch; once)" >&2
  # In the folder of the project, so that uv reads the dependency override in pyproject.toml; compiled now, because
  # where Python may not write bytecode every start would compile PyTorch anew (20 s instead of 5).
  (cd "$ROOT" && "$uv" pip install --quiet --compile-bytecode --python "$VENV/bin/python" \
    --constraints constraints.txt --editable ".[$extras]") || return
  echo "$wanted $extras" >"$stamp"
}
