"""From what lies on a node to files for people: parts put together, bounded, masked, and never half a line or a character."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from orchestra import artifacts
from orchestra.artifacts import Fetched, fetch, texts_of
from orchestra.bootstrap.shelf import StillNode
from orchestra.ids import AttemptId, TaskId
from orchestra.node import Node
from orchestra.protocol.junit import read_junit
from orchestra.protocol.patch import files_of

ATTEMPT = AttemptId(TaskId("p/a"), 2)
KEY = "sk-ant-api03-Zx81Zx81Zx81Zx81"


def entry(line: str, stream: str = "out", **more: bool) -> str:
    return json.dumps({"t": 1, "s": stream, "line": line, **more}, ensure_ascii=False)


def texts(*output: str, stream: bool = False, left_out: int = 0) -> tuple[str, str]:
    made = texts_of(Fetched(output, left_out, "", stream, ()), ("my own secret",))
    return made.log, made.transcript


def test_a_log_names_streams_and_joins_the_parts_of_a_long_line() -> None:
    log, transcript = texts(
        entry(f"a {KEY[:20]}", part=True),
        entry("wrong", "err"),
        entry(f"{KEY[20:]} b"),
        entry("x", "check:tests"),
        "torn",
        entry("my own secret"),
    )
    assert log == "a ******** b\n[err] wrong\n[check:tests] x\n********\n"
    assert transcript == ""


def test_a_secret_that_another_stream_interrupts_is_found() -> None:
    log, _ = texts(entry("my own", "out"), entry("between", "err"), entry(" secret", "out"))
    assert log == "********\n[err] between\n\n"


def test_what_is_left_out_is_said() -> None:
    assert texts(entry("end"), left_out=7)[0].startswith("[orchestra] 7 bytes of output before this are left out")


def test_a_transcript_stays_json() -> None:
    lines = [{"type": "a", "k": KEY}, {"a": ["-----BEGIN PRIVATE KEY-----", 1.5], "b": "-----END PRIVATE KEY-----"}]
    _, transcript = texts(
        *(entry(json.dumps(line)) for line in lines), entry("no json"), entry('{"half":'), entry("{}", "err"), stream=True
    )
    found = [json.loads(line) for line in transcript.splitlines()]
    opened = {"a": ["-----BEGIN PRIVATE KEY-----********", 1.5], "b": "-----END PRIVATE KEY-----"}
    assert found == [{"type": "a", "k": "********"}, opened], "the ends of a key are masked each for itself where they are not of one text"


def test_a_transcript_is_what_the_session_said_where_the_agent_prints_only_how_things_are_going() -> None:
    session = (json.dumps({"type": "assistant", "text": KEY}), "torn", json.dumps({"type": "user"}))
    made = texts_of(Fetched((entry('{"type": "result"}'),), 0, "", True, (), session), ())
    assert [json.loads(line) for line in made.transcript.splitlines()] == [{"type": "assistant", "text": "********"}, {"type": "user"}]
    assert made.log == '{"type": "result"}\n'


@pytest.mark.parametrize("size", [2, 7, 64, 100_000])
async def test_all_of_an_output_is_fetched_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(artifacts, "PIECE_BYTES", size)
    folder = tmp_path / "attempts/p/a/2"
    (folder / "reports").mkdir(parents=True)
    lines = [entry(f"é{number}") for number in range(40)]
    (folder / "output.jsonl.1").write_text("\n".join(lines[:25]) + "\n")
    (folder / "output.jsonl").write_text("\n".join(lines[25:]) + "\n")
    (folder / "spec.json").write_text('{"env": {"A_TOKEN": "0123456789"}, "output": {"view": "json"}}')
    (folder / "reports/junit.xml").write_text("<testsuite/>")
    (folder / "session.jsonl").write_text("{}\n{}\n")
    node = cast("Node", StillNode(tmp_path))
    if size >= 64:
        found = await fetch(node, ATTEMPT, 1 << 20)
        assert found == Fetched(tuple(lines), 0, "<testsuite/>", True, ("0123456789",), ("{}", "{}"))
        less = await fetch(node, ATTEMPT, 20 * len(lines[0].encode()))
        assert less.output[-15:] == tuple(lines[25:])
        assert less.left_out > 0
    else:
        assert len((await fetch(node, ATTEMPT, 1 << 20)).output) >= 38, "pieces shorter than a line may tear one character each"


async def test_an_attempt_that_left_nothing(tmp_path: Path) -> None:
    assert await fetch(cast("Node", StillNode(tmp_path)), ATTEMPT, 1000) == Fetched((), 0, "", False, ())


PATCH = """\
diff --git a/x b/x
index 1..2 100644
--- a/x
+++ b/x
@@ -1,2 +1,2 @@
 same
-diff --git a/no b/no
+new file mode 100644
diff --git "a/t\\303\\244\\n" "b/t\\303\\244\\n"
new file mode 100644
--- /dev/null
+++ "b/t\\303\\244\\n"
@@ -0,0 +1 @@
+one
\\ No newline at end of file
diff --git a/gone b/b b/gone b/b
deleted file mode 100644
@@ -1,2 +0,0 @@
--- a
-- b
diff --git a/p.png b/p.png
GIT binary patch
literal 3
"""


def test_files_of_a_patch() -> None:
    assert [(f.path, f.change, f.added, f.removed, f.binary) for f in files_of(PATCH)] == [
        ("x", "changed", 1, 1, False),
        ("tä\n", "created", 1, 0, False),
        ("gone b/b", "deleted", 0, 2, False),
        ("p.png", "changed", 0, 0, True),
    ]
    assert files_of("no patch at all\n@@ -1 +1 @@\n") == ()


def test_junit() -> None:
    run = read_junit(
        '<testsuites><testsuite name="s"><testcase name="a" time="1,000.5"><error message="m">t</error></testcase></testsuite></testsuites>'
    )
    assert run is not None
    assert [(case.suite, case.name, case.result, case.seconds, case.detail) for case in run.cases] == [("s", "a", "error", 1000.5, "m\nt")]
    for text in ("", "<html/>", "<testsuite", '<!DOCTYPE x [<!ENTITY a "b">]><testsuite/>'):
        assert read_junit(text) is None
