"""A model that does as a scene says, for both APIs: which tools Claude Code or Codex are to call, one after another, and then that it is done.

The scene is the first word of the form SCENE-... in the conversation; how far it has come is seen by the results in it, so nothing is remembered here.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from orchestra.testing.upstream import JSON_TYPE, Answer, Seen, refusal
from tests.gateway.test_agents import claude_says, codex_says, is_turn, text
from tests.scenes import FAULTS, Fault

WORD = re.compile(r"SCENE-[A-Z]+(?:-[A-Z]+)*")
TOKENS = (1_000, 50, 0, 0)
"""What every turn costs: input, output, read from the cache, written to it."""
PATIENCE_MS = 30_000
"""Codex's most for a command, before it asks what to do while that goes on."""
AGAIN = "did not succeed"
"""Words of a prompt that tells what was wrong with an earlier attempt."""

Tool = tuple[str, dict[str, Any]]
"""Name and arguments."""


class Turn(NamedTuple):
    """One request for an answer."""

    kind: str
    scene: str
    step: int
    key: str
    """What it showed as its key."""


class Model:
    """The script of an `Upstream`.

    Args:
        scenes: Word -> what is to be done: shell commands, or tools by name. The word with `-AGAIN` is for a task that is tried again. In those of
            `tests.scenes.FAULTS` the API fails.
    """

    def __init__(self, scenes: Mapping[str, Sequence[str | Tool]]) -> None:
        self.turns: list[Turn] = []
        self._scenes = scenes
        self._held: dict[tuple[str, int], asyncio.Event] = {}

    def hold(self, scene: str, step: int = 0) -> asyncio.Event:
        """Lets a step of a scene wait for the event that is returned."""
        return self._held.setdefault((scene, step), asyncio.Event())

    def asked(self, scene: str, step: int = 0) -> int:
        """Returns how often a step of a scene was asked for."""
        return sum(turn[1:3] == (scene, step) for turn in self.turns)

    async def __call__(self, seen: Seen, number: int) -> Answer:
        if not is_turn(seen):
            return Answer(headers=(JSON_TYPE,), body=b'{"data":[],"models":[]}')
        turn, body = self._turn(seen)
        self.turns.append(turn)
        if (event := self._held.get(turn[1:3])) is not None:
            await event.wait()
        fault = FAULTS.get(turn.scene)
        if fault is not None and (not fault.times or sum(each[:2] == turn[:2] for each in self.turns) <= fault.times):
            return failing(turn.kind, fault)
        steps = self._scenes.get(f"{turn.scene}-AGAIN", ()) if AGAIN in body else ()
        steps = steps or (() if fault is not None else self._scenes[turn.scene])
        if turn.step >= len(steps):
            return text(turn.kind, TOKENS, len(self.turns))
        return _calls(turn, steps[turn.step], len(self.turns))

    def _turn(self, seen: Seen) -> tuple[Turn, str]:
        kind = "claude" if "/messages" in seen.target else "codex"
        body = json.loads(seen.body)
        said = body["messages" if kind == "claude" else "input"]
        words = json.dumps(said)
        found = WORD.search(words)
        assert found is not None, words[-2_000:]
        result = '"type": "tool_result"' if kind == "claude" else '"type": "function_call_output"'
        since = words.rpartition(AGAIN)[2]  # a session that is gone on with holds what was done in earlier attempts
        return Turn(kind, found[0], since.count(result), seen.header("x-api-key") or seen.header("authorization")), words


def failing(kind: str, fault: Fault) -> Answer:
    """What the API of a kind of CLI says in the model's place."""
    if fault.cut:
        whole = text(kind, TOKENS)
        return Answer(headers=whole.headers, chunks=(whole.chunks or ())[:2], reset_after=2)
    wait = () if fault.retry_after is None else (("retry-after", str(fault.retry_after)),)
    if kind == "claude":
        return refusal(fault.status, fault.kind, *wait, message=fault.message)
    error = {"message": fault.message, "type": fault.kind, "code": fault.kind}
    return Answer(status=fault.status, headers=(JSON_TYPE, *wait), body=json.dumps({"error": error}).encode())


def _calls(turn: Turn, step: str | Tool, number: int) -> Answer:
    """A tool call. Its id is one that no other has: a session that is gone on with holds the earlier ones too."""
    if turn.kind == "claude":
        name, arguments = ("Bash", {"command": step, "description": "Do it"}) if isinstance(step, str) else step
        block = {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": {}}
        return claude_says(TOKENS, block, {"type": "input_json_delta", "partial_json": json.dumps(arguments)}, "tool_use", number)
    name, arguments = ("exec_command", {"cmd": step, "yield_time_ms": PATIENCE_MS}) if isinstance(step, str) else step
    call = {"type": "function_call", "name": name, "call_id": f"call_{number}", "arguments": json.dumps(arguments)}
    return codex_says(TOKENS, call)
