#!/usr/bin/env bash
# Makes a working .venv, from nothing or from what is there. A run with nothing to do needs no network and takes a fraction of a second.
#
#   scripts/setup.sh          what `orchestra` needs to run
#   scripts/setup.sh --dev    and the tools of `make check`
#   scripts/setup.sh --test   and the system packages of the integration tests
#
# Environment: PYTHON names the interpreter to use (3.11 or newer). pip's own configuration is left as it is.
# Debian and Ubuntu: missing packages are installed with apt-get, through sudo if need be. macOS: with Homebrew, best effort.
# Written for bash 3.2, which is what macOS has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON_MIN="3.11"
PYTHON_BELOW="3.15"
VENV=".venv"
STAMP="$VENV/.setup-stamp"
LOG=".cache/setup.log"

mode="run"
for argument in "$@"; do
    case "$argument" in
        --dev) [ "$mode" = test ] || mode="dev" ;;
        --test) mode="test" ;;
        *) printf 'setup: unknown option %s (known: --dev, --test)\n' "$argument" >&2; exit 2 ;;
    esac
done

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
# Debian keeps these out of an ordinary user's PATH.
have_system() { have "$1" || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

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

sha256() { if have sha256sum; then sha256sum; else shasum -a 256; fi; }

# ---------------------------------------------------------------- system packages

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

apt_updated=no
apt_install() {
    if [ "$(id -u)" -ne 0 ] && ! have sudo; then
        fail "missing: $*. Not root and no sudo here; ask an administrator for: apt-get install $*"
    fi
    [ "$apt_updated" = yes ] || step "apt-get update" as_root apt-get update -q
    apt_updated=yes
    step "apt-get install $*" as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@"
}

brew_install() {
    local package formulas=""
    for package in "$@"; do
        case "$package" in tmux | git) formulas="$formulas $package" ;; esac # the rest comes with the system
    done
    # shellcheck disable=SC2086 # a list of plain words
    [ -z "$formulas" ] || step "brew install$formulas" brew install --quiet $formulas
}

install_packages() {
    if have apt-get; then
        apt_install "$@"
    elif have brew; then
        brew_install "$@"
    else
        fail "missing: $*. Neither apt-get nor Homebrew here; install these with your system's package manager and run this again"
    fi
}

missing_packages() {
    have tmux || printf 'tmux '
    have git || printf 'git '
    have ps || printf 'procps '
    if have apt-get && [ ! -e /etc/ssl/certs/ca-certificates.crt ]; then printf 'ca-certificates '; fi
    if [ "$mode" = test ] && [ "$(uname -s)" = Linux ]; then
        if ! have unshare || ! have flock; then printf 'util-linux '; fi
        have chromium || printf 'chromium '
        have strace || printf 'strace '
        have bwrap || printf 'bubblewrap '
        have_system mkfs.ext4 || printf 'e2fsprogs '
        ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1 || printf 'libfaketime '
        # The fleet lab: machines in miniature, out of namespaces.
        have ssh || printf 'openssh-client '
        have_system sshd || printf 'openssh-server '
        have_system ip || printf 'iproute2 '
        have_system nft || printf 'nftables '
        [ -x /usr/bin/python3 ] || printf 'python3 '
        # The real agent CLIs (scripts/setup_agents.sh).
        have node || printf 'nodejs '
        have npm || printf 'npm '
        # With node, the tools that success criteria run (tests/integration/test_check_scripts.py).
        have cargo || printf 'cargo '
        have go || printf 'golang-go '
    fi
}

# ---------------------------------------------------------------- Python

# Prints the real interpreter behind a command (not a shim, not another venv's), or nothing if it does not suit.
suitable_python() {
    have "$1" || return 0
    "$1" -c '
import sys
low, high = (tuple(map(int, text.split("."))) for text in sys.argv[1:])
if low <= sys.version_info[:2] < high:
    print(getattr(sys, "_base_executable", None) or sys.executable)
' "$PYTHON_MIN" "$PYTHON_BELOW" 2>/dev/null || true
}

find_python() {
    local candidate found
    if [ -n "${PYTHON:-}" ]; then
        suitable_python "$PYTHON"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        found="$(suitable_python "$candidate")"
        if [ -n "$found" ]; then
            printf '%s\n' "$found"
            return
        fi
    done
}

install_python() {
    local version
    [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is not a Python >= $PYTHON_MIN and < $PYTHON_BELOW"
    if have apt-get; then
        for version in 3.13 3.12 3.11; do
            if apt-cache show "python$version-venv" >/dev/null 2>&1; then
                apt_install "python$version" "python$version-venv"
                return
            fi
        done
    elif have brew; then
        step "brew install python@3.13" brew install --quiet python@3.13
        return
    fi
    fail "needs Python >= $PYTHON_MIN and found none; install one, or name it: PYTHON=/path/to/python make setup"
}

can_make_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

make_venv() {
    local version
    if ! can_make_venv "$python"; then
        # Debian splits the standard library: ensurepip comes with python3.X-venv.
        version="$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
        have apt-get || fail "$python lacks the modules venv and ensurepip; use a complete Python: PYTHON=/path/to/python make setup"
        apt_install "$version"
        can_make_venv "$python" || fail "$python still cannot make a virtual environment after installing $version"
    fi
    step "creating $VENV with $("$python" -V) ($python)" "$python" -m venv --clear "$VENV"
}

# Changes when anything does that the environment is made from.
fingerprint() {
    {
        pwd -P
        cat pyproject.toml requirements/*.txt scripts/setup.sh
    } | sha256 | cut -d ' ' -f 1
}

# A `test` or `dev` environment also serves a plain run; both have the same Python packages.
stamp_serves() {
    local wanted
    [ -x "$VENV/bin/orchestra" ] && [ -r "$STAMP" ] && "$VENV/bin/python" -I -S -c '' 2>/dev/null || return 1
    wanted="$(fingerprint)"
    case "$(cat "$STAMP")" in
        "$wanted dev") return 0 ;;
        "$wanted run") [ "$mode" = run ] ;;
        *) return 1 ;;
    esac
}

venv_usable() {
    [ -x "$VENV/bin/python" ] && [ -r "$VENV/.made-for" ] &&
        [ "$(cat "$VENV/.made-for")" = "$(pwd -P) $python" ] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1
}

install_project() {
    local locks="-r requirements/runtime.txt -r requirements/build.txt" kind="run"
    if [ "$mode" != run ]; then
        locks="-r requirements/dev.txt"
        kind="dev"
    fi
    python="$(find_python)"
    if [ -z "$python" ]; then
        install_python
        python="$(find_python)"
        [ -n "$python" ] || fail "the Python just installed is not on PATH"
    fi
    if ! venv_usable; then
        make_venv
        printf '%s %s\n' "$(pwd -P)" "$python" >"$VENV/.made-for"
    fi
    rm -f "$STAMP"
    # shellcheck disable=SC2086 # a list of plain words
    step "installing the locked requirements ($locks)" "$VENV/bin/python" -m pip install --quiet --require-hashes $locks
    step "installing orchestra from this tree" "$VENV/bin/python" -m pip install --quiet --no-deps --no-build-isolation --editable .
    printf '%s %s\n' "$(fingerprint)" "$kind" >"$STAMP"
}

# ---------------------------------------------------------------- main

mkdir -p .cache
# Two runs at once take turns.
if have flock; then
    exec 9>.cache/setup.lock
    flock 9
fi

packages="$(missing_packages)"
# shellcheck disable=SC2086 # a list of plain words
[ -z "$packages" ] || install_packages $packages
if ! stamp_serves; then
    install_project
    say "done"
fi
