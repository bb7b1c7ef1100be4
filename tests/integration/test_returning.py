"""What an attempt returns in a file, as a real worker takes it up: once, bounded, and only from an agent that ended well."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.stage_support import Stage, staged


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with staged(tmp_path) as made:
        made.worker()
        yield made


def returned(stage: Stage, script: str, **changes: Any) -> Any:
    spec = stage.order(["/bin/sh", "-c", script], **{"returns": "plan", **changes})
    record = stage.wait_record("done", spec)
    kept = json.loads((stage.attempt_folder(spec) / "exit.json").read_text())
    assert kept.get("returned") == record.get("returned")
    return record.get("returned")


def test_what_stands_in_the_file_is_in_the_end_of_the_attempt(stage: Stage) -> None:
    text = '{"tasks": ["\u4e16\u754c", 7]}'
    script = f"test $ORCHESTRA_RETURNS = plan && ! test -e $ORCHESTRA_RETURN && printf %s '{text}' > $ORCHESTRA_RETURN"
    assert returned(stage, script) == {"text": text}


def test_it_is_read_before_the_checks_can_change_it(stage: Stage) -> None:
    check = {"name": "meddles", "argv": ["/bin/sh", "-c", "echo other > $ORCHESTRA_RETURN"], "timeout_ms": 10_000}
    assert returned(stage, "echo mine > $ORCHESTRA_RETURN", checks=[check]) == {"text": "mine\n"}


def test_an_agent_that_failed_returns_nothing(stage: Stage) -> None:
    assert returned(stage, "echo mine > $ORCHESTRA_RETURN; exit 3") is None


def test_who_has_nothing_to_return_is_given_no_place_for_it(stage: Stage) -> None:
    spec = stage.order(["/bin/sh", "-c", "test -z $ORCHESTRA_RETURN"])
    assert stage.wait_record("done", spec)["exit"]["code"] == 0
    assert not (stage.attempt_folder(spec) / "return").exists()


@pytest.mark.parametrize(
    "script, said",
    [
        ("true", "there is no file at $ORCHESTRA_RETURN"),
        ("head -c 40961 /dev/zero | tr '\\0' x > $ORCHESTRA_RETURN", "too large: it may have 40960 bytes"),
        ("head -c 30000 /dev/zero > $ORCHESTRA_RETURN", "too large"),
        ("ln -s /etc/hostname $ORCHESTRA_RETURN", "cannot be read"),
        ("mkfifo $ORCHESTRA_RETURN", "no plain file"),
        ("mkdir $ORCHESTRA_RETURN", "no plain file"),
        ("printf 'a\\377' > $ORCHESTRA_RETURN", "not UTF-8: byte 1"),
        ("rm -r $(dirname $ORCHESTRA_RETURN)", "there is no file"),
    ],
)
def test_what_cannot_be_taken_is_told_in_words(stage: Stage, script: str, said: str) -> None:
    found = returned(stage, script)
    assert isinstance(found, dict)
    assert said in found["error"]


def test_the_largest_one_fits_beside_many_checks_with_much_to_say(stage: Stage) -> None:
    loud = {
        "name": "loud",
        "argv": ["/bin/sh", "-c", "i=0; while test $i -lt 30; do printf '%0500d\\n' 0; i=$((i+1)); done"],
        "timeout_ms": 10_000,
    }
    found = returned(
        stage, "head -c 40000 /dev/zero | tr '\\0' x > $ORCHESTRA_RETURN", checks=[{**loud, "name": f"loud {n}"} for n in range(20)]
    )
    assert found == {"text": "x" * 40000}
