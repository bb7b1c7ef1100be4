"""The order as a worker takes it: every field there, or words for what is wrong. docs/node.md has the form.

A worker does this for every attempt, and mostly finds nothing: so it asks for all kinds and all texts at once, and looks for the field that is to blame
only if there is one.
"""

from __future__ import annotations

from .ending import GRACE_MS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KINDS: dict[str, type] = {
    "task": str,
    "attempt": int,
    "argv": list,
    "env": dict,
    "env_pass": list,
    "stdin": str,
    "grace_ms": int,
    "umask": int,
}
KINDS.update(
    {
        "limits": dict,
        "output": dict,
        "signals": list,
        "success": dict,
        "checks": list,
        "fence": bool,
        "marker": str,
        "title": str,
        "sandbox": dict,
        "returns": str,
        "base": str,
    }
)
NAMES, EXPECTED = list(KINDS), list(KINDS.values())

OUTPUT = {"file_bytes_max": 16777216, "line_bytes_max": 65536, "view": "lines"}
SUCCESS = {"codes": [0], "signal": None}


def _defaults() -> dict[str, Any]:
    full: dict[str, Any] = {"v": 1, "env": {}, "env_pass": [], "cwd": None, "stdin": "null", "timeout_ms": None, "grace_ms": GRACE_MS}
    full.update(
        {
            "sandbox": {},
            "returns": "",
            "base": "",
            "limits": {},
            "umask": 0o022,
            "output": {},
            "signals": [],
            "success": {},
            "checks": [],
            "fence": False,
            "marker": "",
        }
    )
    return full


def _must(held: Any, what: str) -> None:
    if not held:
        raise ValueError("spec: " + what)


def _whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def checked_spec(spec: Any) -> dict[str, Any]:
    """The order with its defaults filled in; ValueError says what is wrong with it."""
    if not isinstance(spec, dict):
        raise ValueError("spec: not a JSON object")
    full = _defaults()
    full.update(spec)
    if list(map(type, map(full.get, NAMES))) != EXPECTED:
        _fill_in(full)
    _check_start(full)
    _check_end(full)
    return full


def _fill_in(full: dict[str, Any]) -> None:
    """What is null, or not there, has its default; what is of another kind is told."""
    default = dict(_defaults(), title=full.get("task"))
    for name, kind in KINDS.items():
        if full.get(name) is None and name in default:
            full[name] = default[name]
        _must(type(full.get(name)) is kind, "%s is missing or not of the kind %s" % (name, kind.__name__))


def _check_start(full: dict[str, Any]) -> None:
    """What it is started with, and its limits."""
    cwd, timeout_ms, argv = full["cwd"], full["timeout_ms"], full["argv"]
    if full["v"] != 1 or not full["task"] or full["attempt"] < 0:
        raise ValueError("spec: v is not 1, task is empty or attempt is negative")
    if not argv or not argv[0]:
        raise ValueError("spec: argv is empty")
    try:
        "".join([*argv, *full["env"].values(), *full["env_pass"], *full["signals"]])
    except TypeError:
        raise ValueError("spec: argv, env, env_pass or signals are not texts") from None
    if cwd is not None and not (isinstance(cwd, str) and cwd.startswith("/")):
        raise ValueError("spec: cwd is not an absolute path")
    if full["stdin"] not in ("null", "pane", "prompt", "screen"):
        raise ValueError("spec: stdin is not null, pane, prompt or screen")
    if timeout_ms is not None and not _whole(timeout_ms, 1):
        raise ValueError("spec: timeout_ms is not a number")
    if full["grace_ms"] < 0 or not 0 <= full["umask"] <= 0o777:
        raise ValueError("spec: grace_ms or umask is out of range")
    if full["limits"]:
        _must(all(value is None or isinstance(value, int) for value in full["limits"].values()), "limits are not numbers")
    if full["sandbox"]:
        _check_sandbox(full["sandbox"])


def _check_sandbox(wanted: dict[str, Any]) -> None:
    """How much it is wanted, and what the order adds to it."""
    _must(wanted.get("mode") in ("auto", "on"), "sandbox.mode is not auto or on")
    for name in ("hide", "readable", "writable"):
        paths = wanted.get(name, [])
        right = isinstance(paths, list) and all(isinstance(path, str) and path.startswith(("/", "~")) for path in paths)
        _must(right, "sandbox.%s is not a list of absolute paths" % name)
    argv = wanted.get("argv", [])
    _must(isinstance(argv, list) and all(isinstance(part, str) for part in argv), "sandbox.argv is not a list of texts")
    worktree = wanted.get("worktree")
    _must(worktree is None or (isinstance(worktree, str) and worktree.startswith("/")), "sandbox.worktree is not an absolute path")


def _check_end(full: dict[str, Any]) -> None:
    """Where its output goes, and what follows when it is over. Fills in the defaults of both."""
    full["output"] = output = {**OUTPUT, **full["output"]}
    full["success"] = success = {**SUCCESS, **full["success"]}
    if not _whole(output["file_bytes_max"], 1) or not _whole(output["line_bytes_max"], 16):
        raise ValueError("spec: output is not numbers")
    expected = success["signal"]
    if type(success["codes"]) is not list or not (
        expected is None or (isinstance(expected, dict) and isinstance(expected.get("type"), str))
    ):
        raise ValueError("spec: success has no list of codes, or its signal has no type")
    for check in full["checks"]:
        _must(isinstance(check, dict) and isinstance(check.get("name"), str), "a check has no name")
        argv = check.get("argv")
        _must(isinstance(argv, list) and argv and all(isinstance(part, str) for part in argv), "a check has no argv")
        _must(_whole(check.get("timeout_ms"), 1), "a check has no timeout_ms")
