"""`orchestra kinds`: each kind on each machine: ready, without a program, or nobody knows."""

from __future__ import annotations

import json

from click.testing import CliRunner, Result

from orchestra.bootstrap.nodes import NodeKinds
from orchestra.edges.cli.main import cli
from orchestra.edges.cli.session import Session
from orchestra.settings import Settings
from orchestra.settings_schema import Node
from orchestra.testing.fake_usecases import FakeWiring


async def no_pause(seconds: float) -> None:
    return None


def call(*args: str) -> Result:
    wiring = FakeWiring(running=False)
    wiring.settings = Settings(nodes={"mugen": Node(host="10.0.0.1"), "majin": Node(host="10.0.0.2")})
    wiring.node_kinds["mugen"] = NodeKinds("mugen", "", {"claude": "/opt/claude", "sh": "/bin/sh"}, {"claude": "2.1 (Claude Code)"})
    wiring.node_kinds["majin"] = NodeKinds("majin", "majin does not answer", {}, {})
    return CliRunner().invoke(cli, ["--root", "/x", *args], obj=Session(wiring, no_pause))


def test_what_each_machine_can_run() -> None:
    told = call("kinds")
    rows = {line.split()[0]: line.split()[1:] for line in told.stdout.splitlines()}
    assert rows["kind"] == ["programs", "mugen", "majin"]
    assert rows["claude"] == ["claude", "2.1", "(Claude", "Code)", "out", "of", "reach"]
    assert rows["shell"] == ["sh", "ready", "out", "of", "reach"]
    assert rows["codex"] == ["codex", "without", "codex", "out", "of", "reach"]
    assert "majin: majin does not answer" in told.stderr


def test_for_programs() -> None:
    found = {each["kind"]: each for each in json.loads(call("kinds", "mugen", "--json").stdout)["kinds"]}
    (claude,), (codex,) = found["claude"]["nodes"], found["codex"]["nodes"]
    assert claude == {
        "node": "mugen",
        "ready": True,
        "problem": "",
        "missing": [],
        "paths": {"claude": "/opt/claude"},
        "versions": {"claude": "2.1 (Claude Code)"},
    }
    assert (codex["ready"], codex["missing"]) == (False, ["codex"])


def test_a_machine_that_is_not_known() -> None:
    told = call("kinds", "mugne")
    assert told.exit_code == 2
    assert "did you mean 'mugen'?" in told.stderr
