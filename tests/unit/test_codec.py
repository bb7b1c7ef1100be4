"""Events to bytes and back: what was ever written can be read, and what this program does not know is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import pytest

from orchestra.codec import events as codec
from orchestra.codec.events import VERSION, decode, encode
from orchestra.codec.state import decode_state, encode_state
from orchestra.core import events as e
from orchestra.core.model import OutcomeKind
from orchestra.core.state import STATE_FORMAT, State
from orchestra.errors import LedgerDamaged
from orchestra.ids import TaskId
from orchestra.testing.builders import Bench, make_agents, make_task

GOLDEN: Final = Path(__file__).parent / "golden" / "events-v1.jsonl"
"""Lines written once by version 1 and never again: old ledgers look like this. A class has one line, and one more for fields that came later."""
LINES: Final = GOLDEN.read_bytes().splitlines()
CLASSES: Final = get_args(e.AnyEvent)


def type_of(line: bytes) -> str:
    return str(msgspec.json.decode(line)["type"])


def test_every_event_class_has_a_golden_line() -> None:
    assert set(map(type_of, LINES)) == {kind.__name__ for kind in CLASSES}


@pytest.mark.parametrize("line", LINES, ids=type_of)
def test_what_version_1_wrote_is_read_and_written_the_same(line: bytes) -> None:
    event = decode(line)
    assert type(event).__name__ == type_of(line)
    assert encode(event) == line
    assert decode(encode(event)) == event


@pytest.mark.parametrize("line", LINES, ids=type_of)
def test_no_field_of_a_golden_line_is_passed_over(line: bytes) -> None:
    """A renamed or removed field would be ignored on reading, and its value lost."""
    written = msgspec.json.decode(line)
    known = {kind.__name__: kind for kind in CLASSES}[written["type"]]
    assert set(written) - {"v", "type"} <= set(known.__struct_fields__)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_field_is_in_a_golden_line(kind: type[e.Event]) -> None:
    lines = [msgspec.json.decode(line) for line in LINES if type_of(line) == kind.__name__]
    assert set(kind.__struct_fields__) <= {field for line in lines for field in line}


def test_the_order_of_fields_does_not_matter() -> None:
    assert decode(b'{"type": "TaskQueued", "task": "p/a", "v": 1}') == e.TaskQueued(TaskId("p/a"))


@pytest.mark.parametrize(
    "body, said",
    [
        (b'{"v":%d,"type":"TaskQueued","task":"p/a"}' % (VERSION + 1), "reads 1 to"),
        (b'{"v":0,"type":"TaskQueued","task":"p/a"}', "has version 0"),
        (b'{"v":"1","type":"TaskQueued","task":"p/a"}', "has version '1'"),
        (b'{"type":"TaskQueued","task":"p/a"}', "has version None"),
        (b'{"v":1,"type":"TaskPainted","task":"p/a"}', "cannot be read"),
        (b'{"v":1,"type":"TaskQueued"}', "cannot be read"),
        (b'{"v":1,"type":"TaskQueued","task":"p/', "cannot be read"),
        (b'{"v":1,"type":"TaskQueued","task":"\xff"}', "cannot be read"),
        (b"[]", "cannot be read"),
        (b"", "cannot be read"),
    ],
)
def test_what_is_not_known_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(LedgerDamaged, match=said):
        decode(body)


def test_an_old_version_is_read_through_every_upcaster_from_its_own_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made up: version 1 called the field `job`, and version 2 prefixed nothing yet."""

    def renamed(values: dict[str, Any]) -> dict[str, Any]:
        return {**{name: value for name, value in values.items() if name != "job"}, "task": values["job"]}

    def prefixed(values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "task": f"p/{values['task']}"}

    monkeypatch.setattr(codec, "VERSION", 3)
    monkeypatch.setattr(codec, "_PREFIX", b'{"v":3,')
    monkeypatch.setattr(codec, "UPCASTERS", {1: renamed, 2: prefixed})
    wanted = e.TaskQueued(TaskId("p/a"))
    assert decode(b'{"v":1,"type":"TaskQueued","job":"a"}') == wanted
    assert decode(b'{"v":2,"type":"TaskQueued","task":"a"}') == wanted
    assert decode(b'{"v":3,"type":"TaskQueued","task":"p/a"}') == wanted
    assert encode(wanted) == b'{"v":3,"type":"TaskQueued","task":"p/a"}'


def test_there_is_an_upcaster_from_every_earlier_version() -> None:
    assert set(codec.UPCASTERS) == set(range(1, VERSION))


def test_a_state_comes_back_the_same_and_of_another_format_not_at_all() -> None:
    bench = Bench(make_agents(2))
    bench.submit(make_task("a", retries=0), make_task("b", "a"), make_task("c", replicas=2))
    bench.finish("p/c", kind=OutcomeKind.FAILED)
    body = encode_state(bench.state)
    restored = decode_state(body, STATE_FORMAT)
    assert restored is not None
    assert encode_state(restored) == body
    assert decode_state(body, STATE_FORMAT + 1) is None
    assert decode_state(body[:-1], STATE_FORMAT) is None
    assert decode_state(encode_state(State())[1:], STATE_FORMAT) is None
