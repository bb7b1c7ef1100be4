"""What agents do in the simulated world: how long one works, how it ends, and whether it tells the truth. Drawn anew for every attempt."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from orchestra.testing.world.options import Weather

FLOOD_SIGNALS = 40
CHECK_MS_MAX = 2_000


class Script(msgspec.Struct):
    """What one agent process will do."""

    duration_ms: int
    hangs: bool = False
    code: int = 0
    signal: int | None = None
    """Not None: it dies by this signal instead of ending."""
    lies: bool = False
    """It says that all is well, and the checks find that it is not."""
    signals: int = 0
    check_ms: int = 0
    tokens: int = 0


def draw_script(dice: Random, weather: Weather, work_ms: tuple[int, int]) -> Script:
    """Returns what the next agent process does."""
    script = Script(dice.randint(*work_ms), tokens=dice.randint(0, 5000), check_ms=dice.randint(1, CHECK_MS_MAX))
    if dice.random() < weather.rate("agent-crash"):
        script.signal = 9
        script.duration_ms = dice.randint(1, script.duration_ms)
    elif dice.random() < weather.rate("agent-hang"):
        script.hangs = True
    elif dice.random() < weather.rate("agent-fail"):
        script.code = dice.choice((1, 2, 126))
    elif dice.random() < weather.rate("agent-lie"):
        script.lies = True
    if dice.random() < weather.rate("agent-flood"):
        script.signals = dice.randint(1, FLOOD_SIGNALS)
    return script


def exit_of(spec: dict[str, Any], script: Script, reason: str, duration_ms: int) -> dict[str, Any]:
    """Returns what the worker writes about the end, as `docs/node.md` has it."""
    usage = {"input_tokens": script.tokens, "output_tokens": script.tokens // 3}
    ended_well = reason == "exit" and script.signal is None and script.code == 0
    line = {"type": "result", "is_error": not ended_well, "usage": usage, "num_turns": 1, "total_cost_usd": script.tokens / 1000}
    told = reason == "exit" and script.signal is None and spec["signals"]
    return {
        "reason": reason,
        "code": script.code if reason == "exit" and script.signal is None else None,
        "signal": script.signal if reason == "exit" else 15,
        "duration_ms": duration_ms,
        "lines": 1,
        "bytes": 10,
        "dropped_bytes": 0,
        "last": {"result": line} if told else {},
        "tail": ["the last line"],
        "rss_bytes_max": 1,
        "cpu_ms": 1,
    }


def succeeded(spec: dict[str, Any], end: dict[str, Any]) -> bool:
    """Tells whether the worker goes on to the checks: the order's own rule for success."""
    rule = spec["success"]
    if end["reason"] != "exit" or end["signal"] or end["code"] not in rule["codes"]:
        return False
    expected = rule["signal"]
    last = end["last"].get(expected["type"]) if expected else None
    return expected is None or (last is not None and all(last.get(name) == value for name, value in expected["fields"].items()))


def check_results(spec: dict[str, Any], script: Script) -> list[dict[str, Any]]:
    """Returns what running the checks comes to."""
    results = [{"name": check["name"], "passed": True, "code": 0, "duration_ms": script.check_ms} for check in spec["checks"]]
    if script.lies and results:
        results[-1].update(passed=False, code=1)
    return results
