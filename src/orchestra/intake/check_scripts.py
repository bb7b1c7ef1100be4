"""The fixed scripts behind the success criteria people know by name.

Each is a constant for `/bin/sh -c`; what varies (a threshold) arrives as a positional argument, so nothing anybody wrote becomes shell text.
All run in the task's folder and find out by its files which tools the project uses. Exit 64 means: there is nothing here to check with.
"""

from __future__ import annotations

from typing import Final

NO_RUNNER: Final = 64
"""Exit code (EX_USAGE of sysexits.h) when no tool was found; a person has to say what to run."""

_PRELUDE: Final = r"""
set -u
found=0
failed=0
say() { printf '%s\n' "$*"; }
none() { say "$1: nothing found in $(pwd) to check with; give a command as the criterion: {run: \"...\"}"; exit 64; }
missing() { say "$1 is needed here and not installed"; exit 64; }
step() { found=1; say "+ $*"; "$@" || { say "exit code $?: $*"; failed=1; }; }
have() { command -v "$1" >/dev/null 2>&1; }
py=python3
for one in .venv/bin/python venv/bin/python; do [ -x "$one" ] && { py=$one; break; }; done
is_python() { [ -f pyproject.toml ] || [ -f setup.cfg ] || [ -f setup.py ] || [ -f pytest.ini ] || [ -f tox.ini ] || python_tests; }
python_tests() {
  for file in tests/*.py tests/*/*.py test/*.py test_*.py *_test.py; do [ -f "$file" ] && return 0; done
  return 1
}
npm_script() { [ -f package.json ] && grep -Eq "\"$1\"[[:space:]]*:" package.json; }
make_target() { for file in GNUmakefile makefile Makefile; do [ -f "$file" ] && grep -Eq "^$1[[:space:]]*:" "$file" && return 0; done; return 1; }
module() { "$py" -c "import $1" >/dev/null 2>&1; }
"""

TESTS: Final = (
    _PRELUDE
    + r"""
if is_python; then
  if module pytest; then step "$py" -m pytest -q
  elif python_tests; then missing pytest; fi
fi
if npm_script test; then have npm || missing npm; step env CI=1 npm test --silent; fi
if [ -f Cargo.toml ]; then have cargo || missing cargo; step cargo test; fi
if [ -f go.mod ]; then have go || missing go; step go test ./...; fi
if [ "$found" = 0 ] && make_target test; then have make || missing make; step make test; fi
[ "$found" = 1 ] || none "tests"
exit "$failed"
"""
)
"""Every test runner the project has must pass; a Makefile's `test` counts where there is no other. No tests at all is not a pass."""

LINTER: Final = (
    _PRELUDE
    + r"""
if is_python || [ -f ruff.toml ] || [ -f .ruff.toml ] || [ -f .flake8 ]; then
  if module ruff; then step "$py" -m ruff check .
  elif have ruff; then step ruff check .
  elif module flake8; then step "$py" -m flake8
  elif have flake8; then step flake8; fi
fi
if [ -f package.json ]; then
  for file in .eslintrc .eslintrc.* eslint.config.*; do
    [ -f "$file" ] && { have npx || missing npx; step npx --no-install eslint .; break; }
  done
fi
if [ -f Cargo.toml ]; then have cargo || missing cargo; step cargo clippy --all-targets -- -D warnings; fi
if [ -f go.mod ]; then have go || missing go; step go vet ./...; fi
[ "$found" = 1 ] || none "linter"
exit "$failed"
"""
)

BUILD: Final = (
    _PRELUDE
    + r"""
if [ -f Cargo.toml ]; then have cargo || missing cargo; step cargo build; fi
if [ -f go.mod ]; then have go || missing go; step go build ./...; fi
if npm_script build; then have npm || missing npm; step env CI=1 npm run build --silent; fi
if [ "$found" = 0 ] && make_target build; then have make || missing make; step make build; fi
if [ "$found" = 0 ] && is_python; then step "$py" -m compileall -q .; fi
[ "$found" = 1 ] || none "build"
exit "$failed"
"""
)

COVERAGE: Final = (
    _PRELUDE
    + r"""
relation=$1
wanted=$2
work=$(mktemp -d) || exit 70
trap 'rm -rf "$work"' EXIT
reached=
if is_python && module pytest; then
  export COVERAGE_FILE="$work/data"
  if module pytest_cov; then step "$py" -m pytest -q --cov=. --cov-report=
  elif module coverage; then step "$py" -m coverage run -m pytest -q
  else missing "coverage (or pytest-cov)"; fi
  step "$py" -m coverage json -q -o "$work/report.json"
  [ "$failed" = 0 ] && reached=$("$py" -c 'import json, sys
print(json.load(open(sys.argv[1]))["totals"]["percent_covered"])' "$work/report.json")
elif [ -f go.mod ]; then
  have go || missing go
  step go test -coverprofile="$work/profile" ./...
  [ "$failed" = 0 ] && reached=$(go tool cover -func="$work/profile" | awk '/^total:/ { sub("%", "", $NF); print $NF }')
fi
[ "$found" = 1 ] || none "coverage"
[ "$failed" = 0 ] || exit 1
[ -n "$reached" ] || { say "no coverage figure was produced"; exit 1; }
say "coverage: $reached% (wanted $relation $wanted%)"
if [ "$relation" = ">=" ]; then awk -v a="$reached" -v b="$wanted" 'BEGIN { exit !(a + 0 >= b + 0) }'
else awk -v a="$reached" -v b="$wanted" 'BEGIN { exit !(a + 0 > b + 0) }'; fi
"""
)
"""Arguments: `>` or `>=`, and the percentage. Says the exact figure, then compares it."""
