"""From a recorded scene to what plays it: steps for the stand-in program, or replies of the mock model to Claude Code and Codex. Pure."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from orchestra.rehearse.scenario import Scene

CLAUDE: Final = "claude"
CODEX: Final = "codex"
SPOKEN: Final = (CLAUDE, CODEX)
"""Kinds whose models can be mocked."""
CHUNKS: Final = 20
"""A reply arrives in about so many pieces, between which its time passes."""
CHUNK_CHARACTERS_MIN: Final = 20
END_OF_FILE: Final = "END-OF-RECORDED-FILE"

Json = dict[str, Any]


def mark_of(task: str) -> str:
    """Returns the words by which the mock model knows a task's prompt."""
    return f"[rehearsal: scene {task}]"


def requirements_of(scene: Scene) -> Json:
    """Returns the requirements by which the stand-in program plays a scene."""
    return {
        "scenario": {
            "steps": steps_of(scene, 0),
            "attempts": {str(number): steps_of(scene, number) for number in sorted(scene.attempts)},
        }
    }


def steps_of(scene: Scene, attempt: int) -> list[Json]:
    """Returns the steps of one attempt."""
    files, direction = scene.files_of(attempt), scene.direction
    pause = direction.seconds / (len(files) + 1)
    steps: list[Json] = [{"sleep": pause}]
    for number, (path, text) in enumerate(files.items(), 1):
        progress = {"value": round(number / (len(files) + 1), 2), "activity": f"wrote {path}"}
        steps += [{"write": {"path": path, "text": text}}, {"progress": progress}, {"sleep": pause}]
    steps += [{"run": command} for command in direction.run]
    usage = {"input_tokens": direction.input_tokens, "output_tokens": direction.output_tokens, "cost_usd": direction.cost_usd}
    return [*steps, {"usage": usage}, {"say": direction.say}]


def fixtures_of(scenes: Mapping[str, tuple[str, Scene]], there: Collection[str] = ()) -> list[Json]:
    """Returns the mock server's fixtures.

    Args:
        scenes: By task, the kind that plays it (`claude` or `codex`) and the scene.
        there: Files that are in a repository before; Claude Code's tool for writing takes only new ones.
    """
    writers: dict[str, int] = {}
    for _, scene in scenes.values():
        for path in {*scene.files, *(path for files in scene.attempts.values() for path in files)}:
            writers[path] = writers.get(path, 0) + 1
    shared = {path for path, count in writers.items() if count > 1} | set(there)
    return [fixture for task, (kind, scene) in scenes.items() for fixture in _of_task(task, kind, scene, shared)]


def _of_task(task: str, kind: str, scene: Scene, shared: Collection[str]) -> Iterable[Json]:
    last = max(scene.attempts, default=0)
    for attempt in range(1, last + 2):
        match: Json = {"userMessage": mark_of(task), "hasToolResult": False}
        if attempt <= last:
            match["sequenceIndex"] = attempt - 1  # the first request of each attempt; all later ones are like the last
        calls = [_call(kind, path, text, shared) for path, text in scene.files_of(attempt).items()]
        calls += [_command(kind, command) for command in scene.direction.run]
        response = {"toolCalls": calls} if calls else {"content": scene.direction.say}
        yield {"match": match, "response": {**response, "usage": _usage(scene)}, **_pace(scene, calls)}
    yield {
        "match": {"userMessage": mark_of(task), "hasToolResult": True},
        "response": {"content": scene.direction.say, "usage": _usage(scene)},
    }


def _call(kind: str, path: str, text: str, shared: Collection[str]) -> Json:
    if kind == CLAUDE and path not in shared:
        return {"name": "Write", "arguments": {"file_path": path, "content": text}}
    return _command(kind, writing(path, text))


def _command(kind: str, command: str) -> Json:
    if kind == CLAUDE:
        return {"name": "Bash", "arguments": {"command": command, "description": "a recorded command"}}
    return {"name": "exec_command", "arguments": {"cmd": command}}


def writing(path: str, text: str) -> str:
    """Returns a shell command that writes a file, whatever is in it."""
    folder = posixpath.dirname(path)
    made = f"mkdir -p {shlex.quote(folder)} && " if folder else ""
    if text.endswith("\n") and END_OF_FILE not in text:
        return f"{made}cat > {shlex.quote(path)} <<'{END_OF_FILE}'\n{text}{END_OF_FILE}"
    return f"{made}printf %s {shlex.quote(text)} > {shlex.quote(path)}"


def _usage(scene: Scene) -> Json:
    """Half of what the scene says: there are two requests."""
    told = scene.direction.input_tokens // 2, scene.direction.output_tokens // 2
    return {
        "input_tokens": told[0],
        "output_tokens": told[1],
        "total_tokens": sum(told),
        "prompt_tokens": told[0],
        "completion_tokens": told[1],
    }


def _pace(scene: Scene, calls: Collection[Json]) -> Json:
    characters = sum(len(text) for call in calls for text in call["arguments"].values())
    return {"latency": round(scene.direction.seconds * 1000 / CHUNKS), "chunkSize": max(characters // CHUNKS, CHUNK_CHARACTERS_MIN)}
