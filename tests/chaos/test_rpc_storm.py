"""A thousand bad command files of ten kinds while a plan runs: each is answered or put aside, none is carried out, the plan does not notice."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.chaos.support import check_exactly_once, orchestra, plan_text, rounds, wait_for

pytestmark = pytest.mark.timeout(300)

FILES: Final = 1000
REQUEST_BYTES: Final = 4096
PLAN_TASKS: Final = 60
CONFIG: Final = f"""
orchestra:
  tasks: {{retries: 50, retry_backoff_seconds: 0.01, retry_backoff_max_seconds: 0.05, grace_seconds: 1}}
  limits: {{request_bytes: {REQUEST_BYTES}, requests_per_second: 1000}}
"""


def command_text(target: Path) -> str:
    """Returns a command that would leave a file if it were ever carried out."""
    task = {"description": "must never run", "requirements": {"run": f"touch {target}"}}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "orchestra.submit_task", "params": task})


class Storm:
    """Writes bad files into a root's folder of commands."""

    def __init__(self, incoming: Path, elsewhere: Path, chance: Random) -> None:
        self.incoming = incoming
        self.elsewhere = elsewhere
        self.chance = chance
        self.pwned = elsewhere / "pwned"
        (elsewhere / "real.json").write_text(command_text(self.pwned))

    def half_written(self, path: Path) -> None:
        text = command_text(self.pwned)
        path.write_text(text[: self.chance.randrange(1, len(text) - 1)])

    def oversized(self, path: Path) -> None:
        path.write_text(command_text(self.pwned) + " " * REQUEST_BYTES)

    def linked(self, path: Path) -> None:
        path.symlink_to(self.elsewhere / "real.json")

    def linked_twice(self, path: Path) -> None:
        own = self.elsewhere / path.name
        own.write_text(command_text(self.pwned))
        path.hardlink_to(own)

    def folder(self, path: Path) -> None:
        own = self.elsewhere / path.name
        own.mkdir()
        (own / "x.json").write_text(command_text(self.pwned))
        own.rename(path)

    def pipe(self, path: Path) -> None:
        os.mkfifo(path)

    def binary(self, path: Path) -> None:
        path.write_bytes(b"\xff\xfe" + self.chance.randbytes(200))

    def key_given_twice(self, path: Path) -> None:
        path.write_text(command_text(self.pwned).replace('"id": 1', '"method": "orchestra.status", "id": 1'))

    def no_such_command(self, path: Path) -> None:
        path.write_text(
            command_text(self.pwned).replace("submit_task", self.chance.choice(["submit", "exec", "../submit_task", "__init__"]))
        )

    def deep(self, path: Path) -> None:
        path.write_text('{"jsonrpc": "2.0", "id": 1, "method": "orchestra.status", "params": ' + "[" * 2000 + "]" * 2000 + "}")

    def bad_name(self, path: Path) -> None:
        path.with_name(f"{self.chance.choice(['$(touch pwned)', 'a b', '-rf', 'ü', 'x' * 100])}{path.name}").write_text(
            command_text(self.pwned)
        )

    @property
    def kinds(self) -> tuple[Callable[[Path], None], ...]:
        """The ten kinds, and files whose name is no command id."""
        return (
            *(self.half_written, self.oversized, self.linked, self.linked_twice, self.folder),
            *(self.pipe, self.binary, self.key_given_twice, self.no_such_command, self.deep, self.bad_name),
        )


@pytest.mark.parametrize("seed", range(rounds(1, 3, "ORCHESTRA_CHAOS_STORMS")))
def test_a_thousand_bad_files_are_answered_or_put_aside_and_none_is_carried_out(tmp_path: Path, seed: int) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with orchestra(tmp_path, config=CONFIG) as stage:
        stage.up()
        name = stage.submit(plan_text(PLAN_TASKS, tmp_path, seed=seed))
        storm = Storm(stage.place.incoming, elsewhere, Random(seed))
        for number in range(FILES):
            storm.kinds[number % len(storm.kinds)](stage.place.incoming / f"bad-{number:04}.json")
        stage.wait_plan(name)
        wait_for(lambda: not left_in(stage.place.incoming), "an empty folder of commands")
        good = stage.place.incoming / "good.json"
        good.write_text(json.dumps({"jsonrpc": "2.0", "id": 7, "method": "orchestra.status", "params": {}}))
        answer = wait_for(lambda: read(stage.place.responses / "good.json"), "an answer to a good command after the storm")
        assert json.loads(answer)["result"]["tasks"]["completed"] == PLAN_TASKS
        check_dealt_with(stage.place.responses, stage.place.quarantine)
        stage.down()
    assert not list(tmp_path.rglob("pwned*"))
    check_exactly_once(stage, PLAN_TASKS)


def check_dealt_with(responses: Path, quarantine: Path) -> None:
    """Every file was answered with an error or lies in quarantine, and no answer says that something was done."""
    answers = {path.name: json.loads(path.read_text()) for path in responses.iterdir() if path.name.startswith("bad-")}
    assert [name for name, answer in answers.items() if "error" not in answer] == []
    aside = {path.name for path in quarantine.iterdir()}
    found = {
        name for number in range(FILES) for name in [f"bad-{number:04}.json"] if name in answers or any(name in each for each in aside)
    }
    assert len(found) == FILES, sorted({f"bad-{number:04}.json" for number in range(FILES)} - found)[:10]


def left_in(folder: Path) -> list[str]:
    """Returns the command files nobody has dealt with."""
    return [path.name for path in folder.iterdir() if path.name.endswith(".json")]


def read(path: Path) -> str:
    """Returns a file's text, or nothing while it is not there."""
    return path.read_text() if path.exists() else ""
