"""A recorded scenario: a folder with one folder a task, in which lie the files that its agent leaves.

<task>/files/...        what it leaves
<task>/attempt-N/...    what it leaves otherwise, or besides, in attempt N: a mistake in the first, say
<task>/scene.yaml       optional: what it says at the end, what it runs, how long it takes, what it consumes
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from orchestra.errors import BadInput
from orchestra.intake import fields as f
from orchestra.intake.document import parse, show_path
from orchestra.intake.shape import convert

FILES: Final = "files"
SCENE: Final = "scene.yaml"
ATTEMPT: Final = re.compile(r"attempt-([1-9][0-9]{0,2})")
BYTES_MAX: Final = 64 << 10
"""Of one file: it becomes part of a command line in Codex's hands, and of one reply."""
FILES_MAX: Final = 1000
SECONDS_DEFAULT: Final = 1.0

Tokens = Annotated[int, Meta(ge=0, le=10**9)]


class Direction(f.Record, frozen=True):
    """What `scene.yaml` says."""

    say: Annotated[str, Meta(min_length=1, max_length=2000, description="Its last words.")] = "Done."
    run: Annotated[tuple[f.Content, ...], Meta(max_length=20, description="Shell commands it runs once its files are written.")] = ()
    seconds: Annotated[float, Meta(ge=0, le=3600, description="How long it takes, about.")] = SECONDS_DEFAULT
    input_tokens: Tokens = 0
    output_tokens: Tokens = 0
    cost_usd: Annotated[float, Meta(ge=0, le=1000)] = 0.0


class Scene(msgspec.Struct, frozen=True):
    """What the agent of one task does."""

    files: Mapping[str, str]
    """Text by path, in the order of the paths."""
    attempts: Mapping[int, Mapping[str, str]] = {}
    """What is otherwise in an attempt."""
    direction: Direction = Direction()

    def files_of(self, attempt: int) -> dict[str, str]:
        """Returns what it leaves in an attempt."""
        return dict(sorted({**self.files, **self.attempts.get(attempt, {})}.items()))


def read_scenario(folder: Path) -> dict[str, Scene]:
    """Returns the scenes by task.

    Raises:
        BadInput: The folder cannot be read, or something in it is not part of a scenario.
    """
    if not folder.is_dir():
        raise BadInput(f"there is no folder {folder}", field="scenario", hint="a scenario is a folder with one folder a task")
    return {place.name: _scene(place) for place in sorted(folder.iterdir()) if not place.name.startswith(".")}


def _scene(place: Path) -> Scene:
    if not place.is_dir():
        raise BadInput(f"{place} is not a folder", field="scenario", hint="a scenario holds one folder a task")
    files: dict[str, str] = {}
    attempts: dict[int, dict[str, str]] = {}
    direction = Direction()
    for part in sorted(place.iterdir()):
        number = ATTEMPT.fullmatch(part.name)
        if part.name == FILES and part.is_dir():
            files = _texts(part)
        elif number and part.is_dir():
            attempts[int(number[1])] = _texts(part)
        elif part.name == SCENE:
            direction = _direction(part)
        else:
            hint = f"a scene has {FILES}/, attempt-1/ and so on, and {SCENE}"
            raise BadInput(f"{part} is not part of a scene", field="scenario", hint=hint)
    return Scene(files, attempts, direction)


def _texts(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if "__pycache__" in path.parts or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink() or not path.is_file():
            raise BadInput(f"{path} is neither file nor folder", field="scenario", hint="only plain files can be recorded")
        found[path.relative_to(folder).as_posix()] = _text(path)
        if len(found) > FILES_MAX:
            raise BadInput(f"{folder} holds more than {FILES_MAX} files", field="scenario", hint="split the task")
    return found


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"{path} cannot be read as UTF-8: {exc}", field="scenario", hint="only text can be recorded") from exc
    if len(raw) > BYTES_MAX or "\0" in text:
        raise BadInput(f"{path} has more than {BYTES_MAX} bytes, or a NUL in it", field="scenario", hint="record a smaller file")
    return text


def _direction(path: Path) -> Direction:
    document = parse(_text(path), source=str(path), error=BadInput)
    made = convert({} if document.value is None else document.value, Direction)
    if isinstance(made, list):
        problem = made[0]
        raise BadInput(f"{document.where(problem.path)}: {problem.message}", field=show_path(problem.path), hint=problem.hint)
    return made
