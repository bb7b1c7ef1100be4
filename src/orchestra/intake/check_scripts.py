"""The fixed scripts behind the success criteria people know by name.

Each is a constant for `/bin/sh -c`; what varies (a threshold, a command from the settings) arrives as a positional argument, so nothing anybody wrote becomes
part of a script. All run in the task's folder and find out by its files which tools the project uses. Exit 64 means: there is nothing here to check with.

What is counted is said in the last line (`tests: 41 passed, 1 failed`), where `agents.ending` reads it. The counting is done by `stage/reporter.py`, which the
worker names in ORCHESTRA_REPORTER; the tests themselves are left as JUnit XML in the folder ORCHESTRA_REPORTS_DIR. Without these nothing is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

NO_RUNNER: Final = 64
"""Exit code (EX_USAGE of sysexits.h) when no tool was found; a person has to say what to run."""

TESTS_NAME: Final = "orchestra-tests"
LINTER_NAME: Final = "orchestra-linter"
BUILD_NAME: Final = "orchestra-build"
COVERAGE_NAME: Final = "orchestra-coverage"

_PRELUDE: Final = r"""
set -u
export PYTHONDONTWRITEBYTECODE=1 # what is looked at afterwards is what the agent left, not what looking at it left
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
figures=
junit=
if [ -n "${ORCHESTRA_REPORTER:-}" ] && [ -n "${ORCHESTRA_REPORTS_DIR:-}" ] && have python3 && mkdir -p "$ORCHESTRA_REPORTS_DIR" 2>/dev/null; then
  figures=$ORCHESTRA_REPORTS_DIR/figures.$$
  junit=$ORCHESTRA_REPORTS_DIR/junit.xml
  rm -f "$figures"
fi
counted() {
  found=1
  form=$1
  shift
  say "+ $*"
  if [ -n "$figures" ]; then python3 -I -S "$ORCHESTRA_REPORTER" "$form" "$figures" "$junit" "$@"; else "$@"; fi || { say "exit code $?: $*"; failed=1; }
}
total() { awk -v name="$1" '$1 == name { sum += $2; seen = 1 } END { if (seen) print sum }' "$figures"; }
tell_tests() {
  [ -s "${figures:-}" ] || return 0
  passed=$(total tests_passed)
  [ -z "$passed" ] || say "tests: $passed passed, $(total tests_failed) failed"
}
tell_linter() {
  [ -s "${figures:-}" ] || return 0
  errors=$(total linter_errors)
  [ -z "$errors" ] || say "linter: $errors errors"
}
"""

TESTS: Final = (
    _PRELUDE
    + r"""
if [ -n "${1:-}" ]; then counted any /bin/sh -c "$1"; tell_tests; exit "$failed"; fi
if is_python; then
  if module pytest; then counted pytest "$py" -m pytest -q
  elif have pytest; then counted pytest pytest -q
  elif python_tests; then missing "pytest (neither as a module of $(command -v "$py") nor as a program)"; fi
fi
if npm_script test; then have npm || missing npm; counted node env CI=1 npm test --silent; fi
if [ -f Cargo.toml ]; then have cargo || missing cargo; counted cargo cargo test; fi
if [ -f go.mod ]; then
  have go || missing go
  if [ -n "$figures" ]; then counted go go test -json ./...; else counted go go test ./...; fi
fi
if [ "$found" = 0 ] && make_target test; then have make || missing make; counted any make test; fi
[ "$found" = 1 ] || none "tests"
tell_tests
exit "$failed"
"""
)
"""Every test runner the project has must pass; a Makefile's `test` counts where there is no other. No tests at all is not a pass. Argument: a command."""

LINTER: Final = (
    _PRELUDE
    + r"""
if [ -n "${1:-}" ]; then counted lint /bin/sh -c "$1"; tell_linter; exit "$failed"; fi
if is_python || [ -f ruff.toml ] || [ -f .ruff.toml ] || [ -f .flake8 ]; then
  if module ruff; then counted lint "$py" -m ruff check .
  elif have ruff; then counted lint ruff check .
  elif module flake8; then counted lint "$py" -m flake8
  elif have flake8; then counted lint flake8; fi
fi
if [ -f package.json ]; then
  for file in .eslintrc .eslintrc.* eslint.config.*; do
    [ -f "$file" ] && { have npx || missing npx; counted lint npx --no-install eslint .; break; }
  done
fi
if [ -f Cargo.toml ]; then have cargo || missing cargo; counted lint cargo clippy --all-targets -- -D warnings; fi
if [ -f go.mod ]; then have go || missing go; counted lint go vet ./...; fi
[ "$found" = 1 ] || none "linter"
tell_linter
exit "$failed"
"""
)
"""Argument: a command."""

BUILD: Final = (
    _PRELUDE
    + r"""
if [ -n "${1:-}" ]; then step /bin/sh -c "$1"; exit "$failed"; fi
if [ -f Cargo.toml ]; then have cargo || missing cargo; step cargo build; fi
if [ -f go.mod ]; then have go || missing go; step go build ./...; fi
if npm_script build; then have npm || missing npm; step env CI=1 npm run build --silent; fi
if [ "$found" = 0 ] && make_target build; then have make || missing make; step make build; fi
if [ "$found" = 0 ] && is_python; then step "$py" -m compileall -q .; fi
[ "$found" = 1 ] || none "build"
exit "$failed"
"""
)
"""Argument: a command."""

COVERAGE: Final = (
    _PRELUDE
    + r"""
relation=$1
wanted=$2
work=$(mktemp -d) || exit 70
trap 'rm -rf "$work"' EXIT
reached=
printed() {
  found=1
  say "+ $*"
  { "$@" 2>&1; echo "$?" > "$work/code"; } | tee "$work/output"
  code=$(cat "$work/code")
  [ "$code" = 0 ] || { say "exit code $code: $*"; failed=1; }
  reached=$(awk '
    { gsub(/\033\[[0-9;]*[A-Za-z]/, ""); line = tolower($0) }
    line ~ /(^|[^a-z])(total|all files|coverage|statements|lines)([^a-z]|$)/ {
      if (line ~ /all files *\|/) { split(line, part, "|"); gsub(/[ %]/, "", part[2]); last = part[2] }
      else if (match(line, /[0-9]+(\.[0-9]+)? ?%/)) { figure = substr(line, RSTART, RLENGTH); gsub(/[ %]/, "", figure); last = figure }
    }
    END { if (last != "") print last }' "$work/output")
}
if [ -n "${3:-}" ]; then printed /bin/sh -c "$3"
elif is_python && module pytest; then
  export COVERAGE_FILE="$work/data"
  if module pytest_cov; then step "$py" -m pytest -q --cov=. --cov-report=
  elif module coverage; then step "$py" -m coverage run -m pytest -q
  else missing "coverage (or pytest-cov)"; fi
  step "$py" -m coverage json -q -o "$work/report.json"
  [ "$failed" = 0 ] && reached=$("$py" -c 'import json, sys
print(json.load(open(sys.argv[1]))["totals"]["percent_covered"])' "$work/report.json")
elif npm_script coverage; then
  have npm || missing npm
  printed env CI=1 npm run coverage --silent
elif [ -f go.mod ]; then
  have go || missing go
  step go test -coverprofile="$work/profile" ./...
  [ "$failed" = 0 ] && reached=$(go tool cover -func="$work/profile" | awk '/^total:/ { sub("%", "", $NF); print $NF }')
elif [ -f Cargo.toml ]; then
  have cargo || missing cargo
  cargo llvm-cov --version >/dev/null 2>&1 || missing cargo-llvm-cov
  step cargo llvm-cov --json --summary-only --output-path "$work/report.json"
  [ "$failed" = 0 ] && reached=$("$py" -c 'import json, sys
print(json.load(open(sys.argv[1]))["data"][0]["totals"]["lines"]["percent"])' "$work/report.json")
fi
[ "$found" = 1 ] || none "coverage"
[ "$failed" = 0 ] || exit 1
[ -n "$reached" ] || { say "no coverage figure was produced"; exit 1; }
say "coverage: $reached% (wanted $relation $wanted%)"
if [ "$relation" = ">=" ]; then awk -v a="$reached" -v b="$wanted" 'BEGIN { exit !(a + 0 >= b + 0) }'
else awk -v a="$reached" -v b="$wanted" 'BEGIN { exit !(a + 0 > b + 0) }'; fi
"""
)
"""Arguments: `>` or `>=`, the percentage, and a command. Says the exact figure, then compares it."""


def with_command(argv: tuple[str, ...], commands: Mapping[str, str]) -> tuple[str, ...]:
    """Returns what to run for a check, with the command from the settings that takes the place of what would be found in the folder.

    Args:
        argv: As the criterion made it.
        commands: By the script's name.
    """
    if len(argv) < 4 or argv[:2] != ("/bin/sh", "-c"):
        return argv
    command = commands.get(argv[3], "")
    return (*argv, command) if command and argv[2] in (TESTS, LINTER, BUILD, COVERAGE) else argv
