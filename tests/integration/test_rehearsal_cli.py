"""The rehearsal CLI as a process: what each step prints, writes and ends with, and what an order to end does to it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orchestra.agents.adapter import Exit
from orchestra.agents.rehearsal import ADAPTER
from orchestra.core.model import OutcomeKind, Payload, TaskSpec
from orchestra.ids import TaskId
from orchestra.stage import rehearsal as cli

PROGRAM = str(Path(cli.__file__))
DEADLINE_SECONDS = 60


class Played(NamedTuple):
    """How a scenario went."""

    code: int
    lines: list[dict[str, Any]]
    out: bytes
    err: str

    @property
    def result(self) -> dict[str, Any]:
        assert self.lines[-1]["type"] == "result"
        return self.lines[-1]


def command(folder: Path, scenario: Any, *more: str) -> list[str]:
    """Returns the command line for a scenario, written beside the folder it plays in."""
    file = folder.parent / f"{folder.name}.json"
    file.write_text(json.dumps(scenario if isinstance(scenario, dict) else {"steps": scenario}))
    return [sys.executable, "-I", "-S", PROGRAM, "--scenario", str(file), "--seed", "7", *more]


def environment(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LANG": "C", "REHEARSAL_SPEED": "0", **more}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def play(here: Path, scenario: Any, *more: str, stdin: bytes = b"", **env: str) -> Played:
    done = subprocess.run(
        command(here, scenario, *more),
        cwd=here,
        env=environment(**env),
        input=stdin,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b'{"type"')]
    return Played(done.returncode, lines, done.stdout, done.stderr.decode())


def of_type(played: Played, kind: str, subtype: str = "") -> list[dict[str, Any]]:
    return [line for line in played.lines if line["type"] == kind and line.get("subtype", "") == (subtype or line.get("subtype", ""))]


def test_a_whole_scenario(here: Path) -> None:
    steps = [
        {"say": "höre 🦜"},
        {"write": {"path": "a/b.txt", "text": "one\n"}},
        {"append": {"path": "a/b.txt", "text": "two\n"}},
        {"read": "a/b.txt"},
        {"run": ["cat", "a/b.txt"]},
        {"run": "printf three"},
        {"tool": {"name": "Grep", "input": {"pattern": "x"}, "result": "none"}},
        {"progress": {"value": 0.5, "activity": "half"}},
        {"usage": {"input_tokens": 10, "output_tokens": 2, "cost_usd": 0.25}},
        {"usage": {"input_tokens": 5}},
        {"sleep": 3600},
        {"say": "Done it."},
    ]
    played = play(here, {"steps": steps, "model": "m1", "usage": {"cache_read_input_tokens": 3}})
    assert played.code == 0, played.err
    assert (here / "a/b.txt").read_text() == "one\ntwo\n"
    assert [played.lines[0][key] for key in ("type", "subtype", "model", "cwd")] == ["system", "init", "m1", str(here.resolve())]
    blocks = [line["message"]["content"][0] for line in of_type(played, "user")]
    assert [block["content"] for block in blocks][2:] == ["one\ntwo\n", "one\ntwo\n", "three", "none"]
    uses = [
        line["message"]["content"][0]["id"] for line in of_type(played, "assistant") if line["message"]["content"][0]["type"] == "tool_use"
    ]
    assert [block["tool_use_id"] for block in blocks] == uses
    assert of_type(played, "system", "progress")[0]["progress"] == 0.5
    assert played.result["usage"] == {
        "input_tokens": 15,
        "output_tokens": 2,
        "cache_read_input_tokens": 3,
        "cache_creation_input_tokens": 0,
    }
    assert [played.result[key] for key in ("is_error", "subtype", "result", "num_turns", "total_cost_usd", "output_files")] == [
        False,
        "success",
        "Done it.",
        8,
        0.25,
        ["a/b.txt"],
    ]
    assert {line["session_id"] for line in played.lines} == {played.lines[0]["session_id"]}


def test_the_same_seed_prints_the_same(here: Path) -> None:
    def stable(played: Played) -> bytes:
        return b"\n".join(line for line in played.out.splitlines() if b"duration_ms" not in line)

    steps = [{"say": "x"}, "binary", {"tool": {"name": "T"}}]
    assert stable(play(here, steps)) == stable(play(here, steps))
    assert play(here, steps, "--resume", "mine").lines[0]["session_id"] == "mine"


def test_fail_ends_with_an_error_as_often_as_it_is_told(here: Path) -> None:
    steps = [{"fail": {"message": "no quota", "attempts": 2}}, {"say": "well"}]
    for attempt, code in [("1", 1), ("2", 1), ("3", 0)]:
        played = play(here, steps, ORCHESTRA_ATTEMPT=attempt)
        assert (played.code, played.result["is_error"]) == (code, code == 1)
    assert play(here, [{"fail": "never"}], ORCHESTRA_ATTEMPT="99").result["result"] == "never"


@pytest.mark.parametrize("step", [{"run": "echo oops; exit 3"}, {"run": ["/no/such/program"]}, {"read": "missing"}])
def test_a_tool_that_fails_ends_the_scenario(here: Path, step: Any) -> None:
    played = play(here, [step, {"write": {"path": "later", "text": ""}}])
    assert (played.code, played.result["is_error"]) == (1, True)
    assert not (here / "later").exists()


@pytest.mark.parametrize("value,code,results", [(3, 3, 0), (0, 0, 0), ({"code": 4, "result": True}, 4, 1)])
def test_exit_leaves_at_once(here: Path, value: Any, code: int, results: int) -> None:
    played = play(here, [{"exit": value}, {"say": "never"}])
    assert (played.code, len(of_type(played, "result")), len(of_type(played, "assistant"))) == (code, results, 0)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGTERM", "SIGABRT", "SIGINT"])
def test_crash_ends_by_the_signal_even_where_it_was_ignored(here: Path, name: str) -> None:
    played = play(here, ["ignore_term", {"crash": name}])
    assert played.code == -signal.Signals[name]
    assert of_type(played, "result") == []


def test_lie_claims_success_and_does_nothing(here: Path) -> None:
    played = play(here, ["lie", {"write": {"path": "a", "text": ""}}])
    assert (played.code, played.result["is_error"], played.result["output_files"]) == (0, False, [])
    assert list(here.iterdir()) == []


def test_ask_waits_for_a_line(here: Path) -> None:
    played = play(here, [{"ask": "Go on?"}], stdin=b"yes\xff\nmore\n")
    assert [line["subtype"] for line in of_type(played, "system")] == ["init", "question", "answer"]
    assert of_type(played, "system", "question")[0]["question"] == "Go on?"
    assert of_type(played, "system", "answer")[0]["answer"].startswith("yes")
    assert play(here, [{"ask": "Go on?"}]).result["result"] == "nobody answered: Go on?"


@pytest.mark.parametrize("value,lines", [({"lines": 2000}, 2000), ({"bytes": 161}, 3)])
def test_flood(here: Path, value: Any, lines: int) -> None:
    flood = [line for line in play(here, [{"flood": value}]).out.splitlines() if line.startswith(b"flood ")]
    assert [int(line.split()[1]) for line in flood] == list(range(1, lines + 1))


def test_binary_and_long_lines(here: Path) -> None:
    played = play(here, [{"binary": {"bytes": 70_000}}, {"long_line": {"bytes": 300_000}}])
    assert played.code == 0
    assert len(played.out) > 370_000
    assert max(len(line) for line in played.out.splitlines()) > 300_000


def test_a_reader_that_goes_away_ends_it(here: Path) -> None:
    process = subprocess.Popen(
        command(here, [{"flood": {"bytes": 2**30}}]), cwd=here, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(DEADLINE_SECONDS) == 128 + signal.SIGPIPE
    assert process.stderr.read() == b""
    process.stderr.close()


def start(here: Path, steps: list[Any]) -> subprocess.Popen[bytes]:
    """Starts a scenario whose second line says that the steps before it were played."""
    process = subprocess.Popen(command(here, steps), cwd=here, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.readline()
    return process


def test_hang_ends_by_term_unless_it_is_ignored(here: Path) -> None:
    with start(here, [{"say": "now"}, "hang"]) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == -signal.SIGTERM


def test_ignored_term_needs_a_kill(here: Path) -> None:
    with start(here, ["ignore_term", {"say": "now"}, {"ask": "?"}, {"say": "still here"}, "hang"]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert b"question" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGHUP)
        process.stdin.write(b"yes\n")
        process.stdin.flush()
        assert b"answer" in process.stdout.readline()
        assert b"still here" in process.stdout.readline()
        process.kill()
        assert process.wait(DEADLINE_SECONDS) == -signal.SIGKILL


def child_pid(played: Played) -> int:
    return int(of_type(played, "user")[0]["message"]["content"][0]["content"].rsplit(None, 1)[1])


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd_open")
def test_a_child_survives_in_a_session_of_its_own(here: Path) -> None:
    pid = child_pid(play(here, [{"child": {"seconds": 600}}]))
    handle = os.pidfd_open(pid)
    try:
        assert os.getsid(pid) not in (pid, os.getsid(0))
        assert select.select([handle], [], [], 0)[0] == []
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        assert select.select([handle], [], [], DEADLINE_SECONDS)[0] == [handle]
    finally:
        os.close(handle)


def test_a_child_may_hold_the_output_open(here: Path) -> None:
    with start(here, [{"child": {"seconds": 600, "hold_output": True}}]) as process:
        assert process.stdout is not None
        pid = int(json.loads(process.stdout.readline())["message"]["content"][0]["content"].rsplit(None, 1)[1])
        assert process.wait(DEADLINE_SECONDS) == 0
        process.stdout.readline()
        assert select.select([process.stdout], [], [], 0)[0] == []
        os.kill(pid, signal.SIGKILL)
        assert process.stdout.read() == b""


@pytest.mark.parametrize("path", ["/tmp/x", "../x", "a/../../x", "out/x", "."])
def test_nothing_outside_the_folder_is_touched(here: Path, path: str) -> None:
    (here / "out").symlink_to(here.parent)
    played = play(here, [{"write": {"path": path, "text": "x"}}])
    assert played.code == 2
    assert "below the current folder" in played.err
    assert not (here.parent / "x").exists()


@pytest.mark.parametrize(
    "scenario,words",
    [
        ([{"dance": 1}], "there is no step 'dance'; known steps: append, ask"),
        ([{"say": "x"}, 3], "steps[1] is not an object"),
        ([{"write": {"path": "a"}}], "steps[0].write: KeyError"),
        ([{"sleep": -1}], "not a number from 0 up"),
        ({"steps": 3}, 'a list of "steps"'),
    ],
)
def test_a_wrong_scenario_is_said_and_ends_with_2(here: Path, scenario: Any, words: str) -> None:
    played = play(here, scenario, REHEARSAL_SPEED="1")
    assert (played.code, of_type(played, "result")) == (2, [])
    assert words in played.err


def test_a_wrong_setting_or_file_is_said_and_ends_with_2(here: Path) -> None:
    assert "REHEARSAL_SPEED is 'fast'" in play(here, [{"say": "x"}], REHEARSAL_SPEED="fast").err
    assert play(here, [{"say": "x"}], "--scenario", str(here / "none.json")).code == 2


def test_without_steps_the_declared_files_are_written(here: Path) -> None:
    (here / "kept.md").write_text("mine")
    files = ["pkg/__init__.py", "pkg/tool.py", "test_tool.py", "a.json", "kept.md", "docs/*.md", "folder/", "../out.py", "Makefile"]
    played = play(here, {"task": 'Build "it" \\ now', "files": files})
    assert played.code == 0, played.err
    assert played.result["output_files"] == ["Makefile", "a.json", "pkg/__init__.py", "pkg/tool.py", "test_tool.py"]
    assert (here / "kept.md").read_text() == "mine"
    assert json.loads((here / "a.json").read_text())
    assert played.result["usage"]["input_tokens"] > 0
    subprocess.run([sys.executable, "-m", "unittest", "-q", "test_tool"], cwd=here, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "."], cwd=here, check=True)


def test_a_prompt_alone_is_enough(here: Path) -> None:
    prompt = here.parent / "prompt.txt"
    prompt.write_text("\n  Do the thing.\nMore.")
    assert "Do the thing." in play(here, {}, "--prompt", str(prompt)).out.decode()


@pytest.mark.parametrize(
    "steps,kind",
    [
        ([{"say": "x"}], OutcomeKind.DONE),
        (["lie"], OutcomeKind.DONE),
        ([{"fail": "x"}], OutcomeKind.FAILED),
        ([{"exit": 0}], OutcomeKind.FAILED),
        ([{"exit": {"code": 1, "result": True}}], OutcomeKind.FAILED),
        (["crash"], OutcomeKind.FAILED),
    ],
)
def test_the_adapter_understands_what_is_printed(here: Path, steps: list[Any], kind: OutcomeKind) -> None:
    spec = TaskSpec(TaskId("t"), "d", Payload("analysis", "p"), requirements=json.dumps({"scenario": steps}))
    played = play(here, steps)
    last = {line["type"]: line for line in played.lines}
    code, number = (played.code, None) if played.code >= 0 else (None, -played.code)
    verdict = ADAPTER.verdict(spec, Exit("exit", code=code, signal=number, last=last))
    assert verdict.kind is kind
    assert verdict.session == played.lines[0]["session_id"]
    assert all(ADAPTER.signal(line) for line in played.lines if line["type"] in ("system", "result"))
