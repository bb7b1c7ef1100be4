#!/usr/bin/env bash
# Installs the real agent CLIs that tests/agents runs, in pinned versions, below .cache/agents. Nothing outside of that folder is touched, and a run
# with nothing to do needs no network and takes a fraction of a second.
#
#   scripts/setup_agents.sh          Claude Code, Codex and the fake model server
#   scripts/setup_agents.sh --all    and opencode, the Gemini CLI, aider and mini-swe-agent
#
# Needs node and npm (any node that runs the fake server, 20 or newer; the two CLIs are native programs). npm's and pip's own configuration is left as it is.
# .cache/agents/bin has a link to each program: put it first in PATH.
# Written for bash 3.2, which is what macOS has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CLAUDE="@anthropic-ai/claude-code@2.1.329"
CODEX="@openai/codex@0.169.0"
AIMOCK="@copilotkit/aimock@1.43.0"
OPENCODE="opencode-ai@1.18.33"
GEMINI="@google/gemini-cli@0.61.0"
AIDER="aider-chat==0.86.2"
MINI="mini-swe-agent==2.4.6"
MCP="mcp==2.3.0" # LiteLLM imports it and retries for minutes without

HOME_DIR="$PWD/.cache/agents"
LOG="$HOME_DIR/setup.log"

all=no
for argument in "$@"; do
    case "$argument" in
        --all) all=yes ;;
        *) printf 'setup_agents: unknown option %s (known: --all)\n' "$argument" >&2; exit 2 ;;
    esac
done

say() { printf 'setup_agents: %s\n' "$*"; }
fail() { printf 'setup_agents: %s\n' "$*" >&2; exit 1; }

# Says what it does, does it quietly, and shows the output only when it failed. Descriptor 9 is the lock and stays with this script.
step() {
    local what="$1"
    shift
    say "$what"
    if ! "$@" >"$LOG" 2>&1 9>&-; then
        tail -n 40 "$LOG" >&2
        fail "failed: $what (whole output: $LOG)"
    fi
}

# npm_packages FOLDER PACKAGE...: all of them with one command, as npm removes what it is not told of.
npm_packages() {
    local folder="$HOME_DIR/$1" stamp="$HOME_DIR/$1/.installed"
    shift
    if [ -r "$stamp" ] && [ "$(cat "$stamp")" = "$*" ]; then return; fi
    command -v npm >/dev/null 2>&1 || fail "npm is missing: install node 20 or newer"
    mkdir -p "$folder"
    rm -f "$stamp"
    # The versions are pinned and the programs native: that an old node is not what a package asks for is only a warning.
    step "npm install $*" npm install --prefix "$folder" --no-audit --no-fund --no-save --loglevel=error "$@"
    printf '%s' "$*" >"$stamp"
}

# pip_packages FOLDER PACKAGE...
pip_packages() {
    local folder="$HOME_DIR/$1" stamp="$HOME_DIR/$1/.installed" python="${PYTHON:-.venv/bin/python}"
    shift
    if [ -r "$stamp" ] && [ "$(cat "$stamp")" = "$*" ]; then return; fi
    [ -x "$python" ] || python=python3
    step "creating $folder" "$python" -m venv --clear "$folder"
    step "pip install $*" "$folder/bin/python" -m pip install --quiet "$@"
    printf '%s' "$*" >"$stamp"
}

# The wrapper of a native program is not used: killed, it would leave the program behind.
link() {
    [ -x "$2" ] || fail "$2 is not there after the installation: remove $HOME_DIR and run this again"
    [ "$(readlink "$HOME_DIR/bin/$1" 2>/dev/null || true)" = "$2" ] || ln -sfn "$2" "$HOME_DIR/bin/$1"
}

# native PATTERN: the one program that is there for this machine.
native() {
    local found
    for found in "$HOME_DIR/node/node_modules/"$1; do
        [ -x "$found" ] && { printf '%s\n' "$found"; return; }
    done
    fail "no program $1 was installed: is there a build for $(uname -sm)?"
}

mkdir -p "$HOME_DIR/bin"
# Two runs at once take turns.
if command -v flock >/dev/null 2>&1; then
    exec 9>"$HOME_DIR/.lock"
    flock 9
fi

npm_packages node "$CLAUDE" "$CODEX" "$AIMOCK"
link claude "$(native '@anthropic-ai/claude-code-*/claude')"
link codex "$(native '@openai/codex-*/vendor/*/bin/codex')"
link aimock "$HOME_DIR/node/node_modules/@copilotkit/aimock/dist/cli.js" # takes fixtures by a flag; the one called aimock-cli wants a configuration file

if [ "$all" = yes ]; then
    npm_packages node-others "$OPENCODE" "$GEMINI"
    link opencode "$HOME_DIR/node-others/node_modules/.bin/opencode"
    link gemini "$HOME_DIR/node-others/node_modules/.bin/gemini"
    pip_packages aider "$AIDER"
    link aider "$HOME_DIR/aider/bin/aider"
    pip_packages mini "$MINI" "$MCP"
    link mini "$HOME_DIR/mini/bin/mini"
fi
