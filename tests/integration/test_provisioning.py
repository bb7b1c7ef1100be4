"""A provisioner is a program of the user's: what it is told, what it may answer, and every way it can fail."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from orchestra.bootstrap.provisioning import provisioner
from orchestra.core.model import NodeSpec
from orchestra.errors import PortFailed, SettingsInvalid
from orchestra.fleetdesk import Wanted
from orchestra.ids import NodeId
from orchestra.settings import Settings, load

WANTED = Wanted(40, (NodeSpec(NodeId("mugen"), host="10.0.0.1", max_agents=100, zone="A"),))


def settings(tmp_path: Path, program: str, *, timeout: str = "20") -> Settings:
    """Settings with this Python program as provisioner."""
    script = tmp_path / "make_machines.py"
    script.write_text(program)
    command = shlex.join([sys.executable, str(script), "--zone", "B B"])
    return load(None, "o.yaml", {}, {"provisioner.command": command, "provisioner.timeout_seconds": timeout})


async def ask(found: Settings) -> tuple[NodeSpec, ...]:
    provide = provisioner(found)
    assert provide is not None
    return await provide(WANTED)


def test_none_is_asked_where_none_is_configured() -> None:
    assert provisioner(load(None, "o.yaml", {}, {})) is None


def test_a_command_that_cannot_be_read_is_refused_at_the_start() -> None:
    with pytest.raises(SettingsInvalid, match=r"provisioner\.command"):
        provisioner(load(None, "o.yaml", {}, {"provisioner.command": "make 'one"}))


async def test_it_is_told_what_is_missing_and_its_machines_are_taken(tmp_path: Path) -> None:
    program = f"""
import json, sys
open({str(tmp_path / "told")!r}, "w").write(json.dumps([sys.argv[1:], json.load(sys.stdin)]))
print(json.dumps({{"nodes": {{"gamma": {{"host": "10.0.0.7", "ssh_user": "ubuntu", "max_agents": 50, "tags": ["new"]}}}}}}))
"""
    specs = await ask(settings(tmp_path, program))
    assert specs == (NodeSpec(NodeId("gamma"), host="10.0.0.7", ssh_user="ubuntu", max_agents=50, tags=("new",)),)
    arguments, told = json.loads((tmp_path / "told").read_text())
    assert arguments == ["--zone", "B B"], "no shell has seen it"
    assert told == {"wanted_agents": 40, "nodes": {"mugen": {"host": "10.0.0.1", "max_agents": 100, "zone": "A"}}}


@pytest.mark.parametrize(
    "program, said",
    [
        ("import sys; sys.exit('no quota left')", "code 1: no quota left"),
        ("print('done')", "printed no JSON"),
        ("print('{}')", "named no machine"),
        ('print(\'{"nodes": {"a": {"host": "h", "max_agents": 0}}}\')', "cannot be used"),
        ('print(\'{"nodes": {"a": {"hots": "h"}}}\')', "cannot be used"),
    ],
)
async def test_what_it_says_otherwise_is_an_error_that_names_the_setting(tmp_path: Path, program: str, said: str) -> None:
    with pytest.raises(PortFailed, match=said) as refusal:
        await ask(settings(tmp_path, program))
    assert refusal.value.field == "provisioner.command"


async def test_one_that_does_not_end_is_ended(tmp_path: Path) -> None:
    with pytest.raises(PortFailed, match="did not end within"):
        await ask(settings(tmp_path, "import signal; signal.pause()", timeout="0.3"))


async def test_one_that_is_not_there_is_told(tmp_path: Path) -> None:
    found = load(None, "o.yaml", {}, {"provisioner.command": str(tmp_path / "missing")})
    with pytest.raises(PortFailed, match="code 127"):
        await ask(found)
