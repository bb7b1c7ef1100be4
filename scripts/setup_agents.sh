#!/usr/bin/env bash
# Installs the real agent CLIs that the tests run, in pinned versions, below .cache/agents. Nothing outside of that folder is touched, and a run
# with nothing to do needs no network and takes a fraction of a second.
#
#   scripts/setup_agents.sh          Claude Code, Codex and the fake model server: what the rehearsals and the demo use
#   scripts/setup_agents.sh --all    and opencode, the Gemini CLI, aider, mini-swe-agent and an old Codex: what `make test` needs
#
# Needs node and npm (any node that runs the fake server, 20 or newer; the CLIs but for Gemini's are native programs). npm's and pip's own configuration
# is left as it is. What comes from PyPI is locked by version and hash in requirements/agents (`make lock`).
# .cache/agents/bin has a link to each program: put it first in PATH.
# Written for bash 3.2, which is what macOS has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CLAUDE="@anthropic-ai/claude-code@2.1.329"
CODEX="@openai/codex@0.169.0"
CODEX_MCP="@openai/codex@0.153.4" # the last one with an MCP server
AIMOCK="@copilotkit/aimock@1.43.0"
OPENCODE="opencode-ai@1.18.33"
GEMINI="@google/gemini-cli@0.61.0"

HOME_DIR="$PWD/.cache/agents"
LOCKS="$PWD/requirements/agents"
PAUSES="10" # seconds before each further try of a step that failed: registries have bad moments

all=no
for argument in "$@"; do
    case "$argument" in
        --all) all=yes ;;
        *) printf 'setup_agents: unknown option %s (known: --all)\n' "$argument" >&2; exit 2 ;;
    esac
done

say() { printf 'setup_agents: %s\n' "$*"; }
fail() { printf 'setup_agents: %s\n' "$*" >&2; exit 1; }

# step LOG WHAT COMMAND...: says what it does, does it quietly, and shows the output only when it failed for the last time. Descriptor 9 is the lock and
# stays with this script.
step() {
    local log="$HOME_DIR/$1.log" what="$2" pause
    shift 2
    say "$what"
    for pause in $PAUSES; do
        if "$@" >"$log" 2>&1 </dev/null 9>&-; then return; fi
        say "failed, once more in $pause seconds: $what"
        sleep "$pause"
    done
    if ! "$@" >"$log" 2>&1 </dev/null 9>&-; then
        tail -n 40 "$log" >&2
        fail "failed: $what (whole output: $log)"
    fi
}

# npm_packages FOLDER WORD...: all packages with one command, as npm removes what it is not told of; words may be options of npm.
npm_packages() {
    local name="$1" folder="$HOME_DIR/$1" stamp="$HOME_DIR/$1/.installed"
    shift
    if [ -r "$stamp" ] && [ "$(cat "$stamp")" = "$*" ]; then return; fi
    command -v npm >/dev/null 2>&1 || fail "npm is missing: install node 20 or newer"
    mkdir -p "$folder"
    rm -f "$stamp"
    # The versions are pinned and the programs native: that an old node is not what a package asks for is only a warning.
    step "$name" "npm install $*" \
        npm install --prefix "$folder" --no-audit --no-fund --no-save --loglevel=error \
        --fetch-retry-mintimeout=2000 --fetch-retry-maxtimeout=10000 --fetch-timeout=60000 "$@"
    printf '%s' "$*" >"$stamp"
}

# pip_packages NAME: a virtual environment of what the lock of that name lists. It cannot be moved, and belongs to one Python.
pip_packages() {
    local name="$1" folder="$HOME_DIR/$1" lock="$LOCKS/$1.txt" stamp="$HOME_DIR/$1/.installed" python="${PYTHON:-.venv/bin/python}" wanted
    [ -x "$python" ] || python="$(command -v "$python" || command -v python3)" || fail "needs Python 3.11 or newer; run: bash scripts/setup.sh"
    wanted="$folder $("$python" -c 'import sys; print("%s %d.%d.%d" % (sys._base_executable, *sys.version_info[:3]))') $(cksum <"$lock")"
    if [ -r "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then return; fi
    rm -f "$stamp"
    step "$name" "creating $folder" "$python" -m venv --clear "$folder"
    # The lock is complete, so nothing is resolved; it serves every Python of this project, also where a package says it does not (aider.overrides).
    step "$name" "pip install -r requirements/agents/$name.txt" \
        "$folder/bin/python" -m pip install --quiet --retries 5 --no-deps --require-hashes --ignore-requires-python -r "$lock"
    printf '%s' "$wanted" >"$stamp"
}

# The wrapper of a native program is not used: killed, it would leave the program behind.
link() {
    [ -x "$2" ] || fail "$2 is not there after the installation: remove $HOME_DIR and run this again"
    [ "$(readlink "$HOME_DIR/bin/$1" 2>/dev/null || true)" = "$2" ] || ln -sfn "$2" "$HOME_DIR/bin/$1"
}

# native FOLDER PATTERN: the one program that is there for this machine.
native() {
    local found
    for found in "$HOME_DIR/$1/node_modules/"$2; do
        [ -x "$found" ] && { printf '%s\n' "$found"; return; }
    done
    fail "no program $2 was installed: is there a build for $(uname -sm)?"
}

# ---------------------------------------------------------------- one function for each folder; they run beside each other

install_node() {
    npm_packages node "$CLAUDE" "$CODEX" "$AIMOCK"
    link claude "$(native node '@anthropic-ai/claude-code-*/claude')"
    link codex "$(native node '@openai/codex-*/vendor/*/bin/codex')"
    # takes fixtures by a flag; the one called aimock-cli wants a configuration file
    link aimock "$HOME_DIR/node/node_modules/@copilotkit/aimock/dist/cli.js"
}

# The program is called codex in its own folder, which is put into PATH where it is wanted.
install_codex_mcp() {
    npm_packages codex-mcp "$CODEX_MCP"
    link codex-mcp "$(native codex-mcp '@openai/codex-*/vendor/*/bin/codex')"
}

install_opencode() {
    npm_packages opencode "$OPENCODE"
    link opencode "$HOME_DIR/opencode/node_modules/.bin/opencode"
}

# Its scripts would compile optional parts, with a compiler and headers that may not be there.
install_gemini() {
    npm_packages gemini --ignore-scripts "$GEMINI"
    link gemini "$HOME_DIR/gemini/node_modules/.bin/gemini"
}

install_aider() {
    pip_packages aider
    link aider "$HOME_DIR/aider/bin/aider"
}

install_mini() {
    pip_packages mini
    link mini "$HOME_DIR/mini/bin/mini"
}

# ---------------------------------------------------------------- main

mkdir -p "$HOME_DIR/bin"
# Two runs at once take turns.
if command -v flock >/dev/null 2>&1; then
    exec 9>"$HOME_DIR/.lock"
    flock 9
fi

wanted="node"
[ "$all" = no ] || wanted="aider mini node codex_mcp opencode gemini"

# Each is a process group, so that an interrupted run leaves no installation behind.
set -m
running=""
end_all() { local each; for each in $running; do kill -TERM -- "-$each" 2>/dev/null || true; done; }
trap end_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
for each in $wanted; do
    "install_$each" &
    running="$running $!"
done
failed=no
for each in $running; do
    wait "$each" || failed=yes
done
running=""
[ "$failed" = no ] || fail "not everything is installed (see above); run this again"
