#!/usr/bin/env bash
# Runs the default tests beside other versions than the tested ones, each set in an environment of its own (.matrix/, about
# 5 GB each), and prints which passed. Words for pytest go into PYTEST_ADDOPTS.
#   scripts/test_matrix.sh                       # all of them
#   scripts/test_matrix.sh oldest python3.13     # these
# oldest: the lowest versions of pyproject.toml, on the oldest Python; newest: what the registry has, on the newest Python;
# python3.x: the versions of constraints.txt on that Python.
set -uo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup test || exit
cd "$ROOT" || exit
# pyenv shows one Python at a time unless it is asked for all.
command -v pyenv >/dev/null 2>&1 && PYENV_VERSION=$(pyenv versions --bare | grep '^3' | sort -rV | paste -sd: -) && export PYENV_VERSION
uv="$VENV/bin/uv" pythons=()
for version in 3.11 3.12 3.13; do
  "$uv" python find --no-project --system "$version" >/dev/null 2>&1 && pythons+=("$version")
done
[ $# -gt 0 ] || set -- oldest newest "${pythons[@]/#/python}"

# Installs a job's environment and runs the tests in it.
job() {
  local name=$1 home="$ROOT/.matrix/$1" version=() python
  case "$name" in
    oldest) python=${pythons[0]} version=(--resolution lowest-direct) ;;
    newest) python=${pythons[-1]} version=(--upgrade) ;;
    python3.*) python=${name#python} version=(--constraints constraints.txt) ;;
    *) echo "unknown job '$name': oldest, newest, ${pythons[*]/#/python}"; return 2 ;;
  esac
  "$uv" venv --quiet --clear --no-project --python "$python" "$home" &&
    "$uv" pip install --quiet --compile-bytecode --python "$home/bin/python" "${version[@]}" --editable '.[test]' &&
    "$uv" pip freeze --quiet --python "$home/bin/python" &&
    "$home/bin/python" -m pytest -n auto --dist loadfile
}

mkdir -p .matrix
failed=0 table=""
for name in "$@"; do
  log=".matrix/$name.log"
  echo "$name: see $log" >&2
  if job "$name" >"$log" 2>&1; then result=passed; else result=failed failed=1; fi
  table+=$(printf '%-11s %-7s %-18s %s' "$name" "$result" \
    "torch $(sed -n 's/^torch==//p' "$log")" "$(tail -n 1 "$log")")$'\n'
done
printf '%s' "$table"
exit $failed
