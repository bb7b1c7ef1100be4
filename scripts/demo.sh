#!/usr/bin/env bash
# Rehearses the plan that builds a web framework, with 15 agents, and says where report and branch are. No key, no model, no cost: the real Claude Code and Codex
# with a mock model where they are installed (scripts/setup_agents.sh), else a stand-in program; what they write is recorded in examples/level6/scenario.
# Usage: scripts/demo.sh [options for `orchestra rehearse`]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

status=0
.venv/bin/orchestra rehearse examples/level6/plan.yaml "$@" || status=$?

case "$status" in
    0) printf 'demo: every task succeeded; open the report in a browser, and remove the folder when you are done\n' ;;
    *) printf 'demo: the rehearsal ended with exit code %s\n' "$status" >&2 ;;
esac
exit "$status"
