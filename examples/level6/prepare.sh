#!/usr/bin/env bash
# Makes the repository that the plan builds in: examples/level6/build, empty. Nothing is done if it is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
[ -e build/.git ] || git init --quiet build
echo "build is a git repository; run: orchestra run examples/level6/plan.yaml"
