"""The order as a worker takes it: every field there, or words for what is wrong. docs/node.md has the form."""

from __future__ import annotations

import os

from .ending import GRACE_MS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _must(held: Any, what: str) -> None:
    if not held:
        raise ValueError("spec: " + what)


def checked_spec(spec: Any) -> dict[str, Any]:
    """The order with its defaults filled in; ValueError says what is wrong with it."""
    _must(isinstance(spec, dict), "not a JSON object")
    _must(spec.get("v", 1) == 1, "v is not 1")
    _must(isinstance(spec.get("task"), str) and spec["task"], "task is missing")
    _must(_whole(spec.get("attempt"), 0), "attempt is missing")
    _must(_texts(spec.get("argv")) and spec["argv"] and spec["argv"][0], "argv is missing")
    full: dict[str, Any] = {"env": {}, "env_pass": [], "cwd": None, "stdin": "null", "timeout_ms": None, "grace_ms": GRACE_MS, "limits": {}}
    full["umask"] = 0o022
    full.update({"output": {}, "signals": [], "success": {}, "checks": [], "marker": "", "title": spec["task"]})
    full.update({name: value for name, value in spec.items() if value is not None})
    _check_start(full)
    _check_end(full)
    return full


def _check_start(full: dict[str, Any]) -> None:
    """What it is started with, and its limits."""
    _must(isinstance(full["env"], dict) and _texts(list(full["env"].values())), "env is not names and texts")
    _must(_texts(full["env_pass"]) and _texts(full["signals"]), "env_pass or signals are not texts")
    _must(full["cwd"] is None or (isinstance(full["cwd"], str) and os.path.isabs(full["cwd"])), "cwd is not an absolute path")
    _must(full["stdin"] in ("null", "pane", "prompt"), "stdin is not null, pane or prompt")
    _must(full["timeout_ms"] is None or _whole(full["timeout_ms"], 1), "timeout_ms is not a number")
    _must(_whole(full["grace_ms"], 0), "grace_ms is not a number")
    _must(_whole(full["umask"], 0) and full["umask"] <= 0o777, "umask is not a file mode mask")
    _must(isinstance(full["limits"], dict), "limits is not an object")
    _must(all(value is None or isinstance(value, int) for value in full["limits"].values()), "limits are not numbers")


def _check_end(full: dict[str, Any]) -> None:
    """Where its output goes, and what follows when it is over. Fills in the defaults of both."""
    _must(isinstance(full["output"], dict) and isinstance(full["success"], dict), "output or success is not an object")
    full["output"] = dict({"file_bytes_max": 16777216, "line_bytes_max": 65536, "view": "lines"}, **full["output"])
    _must(_whole(full["output"]["file_bytes_max"], 1) and _whole(full["output"]["line_bytes_max"], 16), "output is not numbers")
    full["success"] = dict({"codes": [0], "signal": None}, **full["success"])
    expected = full["success"]["signal"]
    _must(isinstance(full["success"]["codes"], list), "success.codes is not a list")
    _must(expected is None or (isinstance(expected, dict) and isinstance(expected.get("type"), str)), "success.signal has no type")
    _must(isinstance(full["checks"], list), "checks is not a list")
    for check in full["checks"]:
        _must(isinstance(check, dict) and isinstance(check.get("name"), str), "a check has no name")
        _must(_texts(check.get("argv")) and check["argv"] and _whole(check.get("timeout_ms"), 1), "a check has no argv or timeout_ms")
    _must(isinstance(full["marker"], str) and isinstance(full["title"], str), "marker or title is not a text")
