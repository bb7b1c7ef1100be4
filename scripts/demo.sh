#!/usr/bin/env bash
# Runs the demonstration plan with ten agents in a root of its own and says where the report is.
# Usage: scripts/demo.sh [options for `orchestra run`]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

plan=examples/level6/plan.yaml
# Under /tmp and short: a Unix socket lies in the root, and its path may have only about 100 characters.
root="$(mktemp -d /tmp/orchestra-demo.XXXXXX)"

printf 'demo: %s on 10 agents, root %s\n' "$plan" "$root"
status=0
.venv/bin/orchestra run "$plan" --agents 10 --root "$root" "$@" || status=$?

case "$status" in
    0) printf 'demo: every task succeeded\n' ;;
    *) printf 'demo: the run ended with exit code %s\n' "$status" >&2 ;;
esac

reports="$(find "$root/reports" -type f -name "*.html" 2>/dev/null | sort)"
if [ -n "$reports" ]; then
    while IFS= read -r report; do printf 'report: %s\n' "$report"; done <<<"$reports"
else
    printf 'demo: no report was written; the logs are under %s\n' "$root" >&2
fi
printf 'demo: everything it made is in %s; remove that directory when you are done\n' "$root"
exit "$status"
