"""`orchestra node check` and `node trust` against a real sshd: what each says on the way from a strange machine to a usable one, and when its key changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestra.edges.cli.main import cli
from tests.integration.ssh_support import ALIAS, Sshd, command, make_key, public, sshd_of

sshd = sshd_of


@pytest.fixture
def root(tmp_path: Path, sshd: Sshd) -> Path:
    folder = tmp_path / "root"
    (folder / "config").mkdir(parents=True)
    settings = {"ssh": {"config_file": str(sshd.config)}, "nodes": {"box": {"host": ALIAS}, "here": {}}}
    (folder / "config" / "orchestra.yaml").write_text(json.dumps({"orchestra": settings}))
    sshd.known_hosts.unlink()
    return folder


def call(root: Path, *args: str) -> Result:
    return CliRunner().invoke(cli, ["--root", str(root), "--json", *args])


def steps_of(result: Result) -> list[tuple[str, bool]]:
    nodes = {each["node"]: each for each in json.loads(result.stdout)["nodes"]}
    return [(each["name"], each["ok"]) for each in nodes["box"]["findings"]]


def fingerprint_of(sshd: Sshd) -> str:
    """What the machine itself says."""
    return command("ssh-keygen", "-lf", f"{sshd.host_key}.pub").decode().split()[1]


def test_from_a_strange_machine_to_a_usable_one(sshd: Sshd, root: Path) -> None:
    sshd.stop()
    assert steps_of(call(root, "node", "check", "box")) == [("reachable", False)]
    sshd.start()
    strange = call(root, "node", "check")
    assert (strange.exit_code, steps_of(strange)) == (1, [("reachable", True), ("host key", False)])
    assert "orchestra node trust box" in strange.stdout
    here = next(each for each in json.loads(strange.stdout)["nodes"] if each["node"] == "here")
    assert here["usable"], "one that is out of reach does not hold up the others"

    asked = call(root, "node", "trust", "box")
    assert asked.exit_code == 2, "there is nobody to compare it"
    assert not sshd.known_hosts.exists()
    shown = fingerprint_of(sshd)
    trusted = call(root, "node", "trust", "box", "--fingerprint", shown)
    assert trusted.exit_code == 0, trusted.output
    assert {"fingerprint": shown, "added": True, "file": str(sshd.known_hosts)}.items() <= json.loads(trusted.stdout).items()
    assert json.loads(call(root, "node", "trust", "box").stdout)["added"] is False

    usable = call(root, "node", "check", "box")
    assert usable.exit_code == 0, usable.output
    assert steps_of(usable)[:5] == [("reachable", True), ("host key", True), ("login", True), ("python", True), ("tmux", True)]

    sshd.accept(make_key(sshd.folder / "another_key"))
    assert steps_of(call(root, "node", "check", "box")) == [("reachable", True), ("host key", True), ("login", False)]


def test_a_changed_key_is_refused_until_it_is_replaced(sshd: Sshd, root: Path) -> None:
    assert call(root, "node", "trust", "box", "--yes").exit_code == 0
    sshd.replace_host_key()
    sshd.restart()
    kept = sshd.known_hosts.read_text()
    assert steps_of(call(root, "node", "check", "box")) == [("reachable", True), ("host key", False)]
    refused = call(root, "node", "trust", "box", "--yes")
    error: dict[str, Any] = json.loads(refused.stderr)["error"]
    assert (refused.exit_code, error["code"]) == (69, "host_key_refused")
    assert "has CHANGED" in error["message"]
    assert "--replace" in error["hint"]
    assert sshd.known_hosts.read_text() == kept

    replaced = call(root, "node", "trust", "box", "--yes", "--replace")
    assert replaced.exit_code == 0, replaced.output
    assert json.loads(replaced.stdout)["replaced"] is True
    assert public(sshd.host_key).split()[1] in sshd.known_hosts.read_text()
    assert len(sshd.known_hosts.read_text().splitlines()) == 1
    assert call(root, "node", "check", "box").exit_code == 0


def test_a_key_of_another_kind_is_known_when_the_known_one_is_right(sshd: Sshd, root: Path) -> None:
    old = make_key(sshd.folder / "rsa_key", "-t", "rsa", "-b", "3072")
    sshd.settings = f"HostKey {old}"
    sshd.restart()
    kind, key = public(old).split()[:2]
    sshd.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {kind} {key}\n")
    told = json.loads(call(root, "node", "trust", "box").stdout)
    assert (told["kind"], told["added"]) == ("ssh-ed25519", False)
    assert call(root, "node", "check", "box").exit_code == 0


def test_a_machine_that_is_no_node_is_trusted_by_its_address(sshd: Sshd, root: Path) -> None:
    sshd.config.write_text(f"Host *\n  UserKnownHostsFile {sshd.known_hosts}\n  GlobalKnownHostsFile none\n")
    told = call(root, "node", "trust", f"somebody@127.0.0.1:{sshd.port}", "--yes")
    assert told.exit_code == 0, told.output
    assert sshd.known_hosts.read_text().startswith(f"[127.0.0.1]:{sshd.port} ssh-ed25519 ")


def test_doctor_has_lines_of_the_configured_machines(sshd: Sshd, root: Path) -> None:
    sshd.stop()
    told = call(root, "doctor")
    assert told.exit_code == 1
    lines = {each["name"]: each["ok"] for each in json.loads(told.stdout)}
    assert lines["node box: reachable"] is False
    assert "ssh program" in lines
    assert not [name for name in lines if name.startswith("node here")]


def test_kinds_are_looked_for_on_every_machine(sshd: Sshd, root: Path, tmp_path: Path) -> None:
    mine = tmp_path / "my-agent"
    mine.write_text("#!/bin/sh\necho my-agent 1.2.3\n")
    mine.chmod(0o755)
    settings = root / "config" / "orchestra.yaml"
    values = json.loads(settings.read_text())
    values["orchestra"]["kinds"] = {"mine": {"command": f"{mine} {{prompt}}"}, "other": {"command": "no-such-program {prompt}"}}
    settings.write_text(json.dumps(values))
    assert call(root, "node", "trust", "box", "--fingerprint", fingerprint_of(sshd)).exit_code == 0
    kinds = {each["kind"]: each["nodes"] for each in json.loads(call(root, "kinds", "--versions").stdout)["kinds"]}
    assert [(each["node"], each["ready"], each["versions"]) for each in kinds["mine"]] == [
        (node, True, {str(mine): "my-agent 1.2.3"}) for node in ("box", "here")
    ]
    assert [each["missing"] for each in kinds["other"]] == [["no-such-program"]] * 2
    sshd.stop()
    (box,) = next(each for each in json.loads(call(root, "kinds", "box").stdout)["kinds"] if each["kind"] == "mine")["nodes"]
    assert (box["ready"], box["missing"], bool(box["problem"])) == (False, [], True)
