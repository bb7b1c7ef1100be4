"""Agent kinds that go and come back while a plan runs, with the installed command, real windows, and two tools that need no model."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import Shell, shell

pytestmark = pytest.mark.timeout(200)
DEADLINE_S = 60

SETTINGS = """
orchestra:
  sandbox: {mode: "off"}
  kinds:
    builder: {command: "builder {prompt_file}", auth_codes: "77"}
    planner: {command: "planner {prompt_file}"}
  routing: {alternatives: [builder=planner], retry_minutes: 0.02}
"""
HEAD = """
name: {name}
workspace: work
agents: {{count: 1}}
defaults: {{isolation: shared, retries: 0, estimated_seconds: 60}}
tasks:
"""


@pytest.fixture
def sh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    (tmp_path / "root" / "config").mkdir(parents=True)
    (tmp_path / "root" / "config" / "orchestra.yaml").write_text(SETTINGS)
    tool(tmp_path, "planner", "cat $1; echo planner did it")
    for name in ("began", "gate"):
        os.mkfifo(tmp_path / name)
    with shell(tmp_path) as found:
        yield found


def tool(folder: Path, name: str, script: str) -> None:
    path = folder / "tools" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def told(sh: Shell, event: str) -> Any:
    """Waits until a parent is told such an event; returns it."""
    deadline = time.monotonic() + DEADLINE_S
    folder = sh.root / "queue" / "events"
    while True:
        found = sorted(folder.glob(f"*-{event}.json")) if folder.exists() else []
        if found:
            return json.loads(found[0].read_text())
        assert time.monotonic() < deadline, f"{event} did not come"
        select.select([], [], [], 0.02)


def test_a_program_that_is_removed_while_the_plan_runs(sh: Shell) -> None:
    tool(sh.folder, "builder", f"echo began > {sh.folder}/began; read x < {sh.folder}/gate; echo builder did it")
    plan = HEAD.format(name="goes") + (
        "  - {id: first, agent: builder, prompt: build the first part, priority: high}\n"
        "  - {id: second, agent: builder, prompt: build the second part}\n"
        "  - {id: third, agent: builder, prompt: build the third part, needs: [second]}\n"
    )
    process = sh.start("run", sh.plan(plan))
    with (sh.folder / "began").open() as began:
        assert began.read() == "began\n"
    (sh.folder / "tools" / "builder").unlink()
    lost = told(sh, "agent_kind_lost")
    assert (lost["kind"], lost["tasks_go_to"]) == ("builder", "planner")
    moved = told(sh, "task_moved")
    assert (moved["task_id"], moved["from"], moved["to"], moved["estimated_seconds"]) == ("goes/second", "builder", "planner", 90)
    assert sh.json("task", "show", "goes/second")["task"]["estimate_ms"] == 90_000
    assert "planner takes it if that is still so when it is ready" in sh.run("task", "explain", "goes/third").stdout
    assert "It was moved from builder to planner" in sh.run("task", "explain", "goes/second").stdout
    with (sh.folder / "gate").open("w") as gate:
        gate.write("go\n")
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, out + err
    assert "planner takes the tasks of builder" in out
    assert sh.result("goes/first")["warnings"] == []
    for name in ("second", "third"):
        warning = "moved from builder to planner: builder is not installed any more on any node that has agents for it; expected to take 50 % longer"
        assert sh.result(f"goes/{name}")["warnings"] == [warning]
        shown = sh.json("task", "show", f"goes/{name}")["task"]
        assert (shown["kind"], shown["warnings"]) == ("planner", [warning])
        assert "planner did it" in (sh.root / "results" / "goes" / name / "execution.log").read_text()
    assert "moved from builder to planner" in (sh.root / "reports" / "goes.md").read_text()


def test_a_login_that_is_refused_and_then_mended(sh: Shell) -> None:
    tool(sh.folder, "builder", f"test -e {sh.folder}/login || {{ echo 'error 401: no login'; exit 77; }}; echo builder did it")
    plan = HEAD.format(name="login") + (
        "  - {id: one, agent: builder, prompt: build the first part}\n"
        "  - {id: two, agent: builder, prompt: build the second part}\n"
        f"  - {{id: wait, needs: [one, two], run: 'read x < {sh.folder}/gate'}}\n"
        "  - {id: late, agent: builder, prompt: build the last part, needs: [wait]}\n"
    )
    process = sh.start("run", sh.plan(plan))
    lost = told(sh, "agent_kind_lost")
    assert lost["reason"] == "builder does not work: auth: exit code 77: error 401: no login"
    (sh.folder / "login").touch()
    assert told(sh, "agent_kind_recovered")["kind"] == "builder"
    with (sh.folder / "gate").open("w") as gate:
        gate.write("go\n")
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, out + err
    moved = [name for name in ("one", "two") if any("moved from builder" in each for each in sh.result(f"login/{name}")["warnings"])]
    assert moved, "the second that failed moves at once, without any retry left"
    assert sh.result("login/late")["warnings"] == []
    assert "builder did it" in (sh.root / "results" / "login" / "late" / "execution.log").read_text()


ROSTER = """
roster: pair
agents: 2
kinds: {builder: 1, planner: 1}
specialities: {codegen: 1, documentation: 1}
"""


def test_a_task_that_names_no_kind_goes_to_the_specialists_of_the_roster(sh: Shell) -> None:
    tool(sh.folder, "builder", "echo builder did it")
    settings = sh.root / "config" / "orchestra.yaml"
    settings.write_text(SETTINGS.replace("routing: {", 'routing: {coding: "", '))
    (sh.folder / "pair.yaml").write_text(ROSTER)
    done = sh.run("up", "--roster", "pair.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    shown = {}
    for name, extra in (("code", {}), ("text", {"speciality": "documentation"})):
        task = {"task_id": name, "description": "Write the part that reads the header", "isolation": "shared", **extra}
        command = sh.root / "queue" / "incoming" / f"{name}.json"
        part = command.with_name(f".{name}.part")
        part.write_text(json.dumps({"command": "orchestra.submit_task", "parameters": task}))
        part.rename(command)
    for name in ("code", "text"):
        deadline = time.monotonic() + DEADLINE_S
        while not (sh.root / "results" / name / "result.json").exists():
            assert time.monotonic() < deadline, (sh.root / "queue" / "responses").glob("*")
            select.select([], [], [], 0.02)
        assert sh.result(name)["status"] == "completed"
        shown[name] = sh.json("task", "show", name)["task"]["kind"]
    assert shown == {"code": "builder", "text": "planner"}
