"""Machines seen from here: which there are, what a look at one says, and what becomes of the file of known hosts."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import asyncssh
import msgspec
import pytest

from orchestra.bootstrap import trust
from orchestra.bootstrap.launch import _obey_signals, start_in_window
from orchestra.bootstrap.nodes import check_nodes, choose_nodes, kinds_finding, known_nodes, way_in
from orchestra.bootstrap.trust import KeyOffer, KnownLine, trust_key, trust_target
from orchestra.bootstrap.wiring import ledger_options
from orchestra.clocks.system import SystemClock
from orchestra.codec.events import encode
from orchestra.core import events as e
from orchestra.core.model import NodeSpec
from orchestra.errors import BadInput, HostKeyRefused, IllegalMove, LoginRefused, NodeFailed, NodeUnreachable, NotFound, SettingsInvalid
from orchestra.ids import NodeId
from orchestra.ledger import Append, NewEvent
from orchestra.ledgers.sqlite import SqliteLedger
from orchestra.nodes.probe import NodeProbe
from orchestra.nodes.ssh import HostKey, SshTarget
from orchestra.nodes.ssh_trust import KnownKey, Trust
from orchestra.root import Root
from orchestra.settings import Settings
from orchestra.settings_schema import Node, Provisioner, Recovery, Ssh
from orchestra.testing.fake_usecases import FakeUseCases
from orchestra.usecases import ShutdownReply

HERE = NodeSpec(NodeId("here"))
MAJIN = NodeSpec(NodeId("majin"), host="10.0.0.2", ssh_user="ai", port=2222)
SPECS = (HERE, MAJIN)
NEW = "majin ssh-ed25519 NEWKEY\n"


# --- which ---------------------------------------------------------------------------------------------------------------


def test_without_a_ledger_the_configured_nodes_are_known(tmp_path: Path) -> None:
    assert [spec.id for spec in known_nodes(tmp_path, Settings())] == ["local"]
    assert [spec.id for spec in known_nodes(tmp_path, Settings(nodes={"a": Node(), "b": Node(host="b")}))] == ["a", "b"]


def write_ledger(root: Path, *events: e.Event) -> None:
    place = Root(root)
    place.prepare()
    ledger = SqliteLedger.open(place.ledger, ledger_options(place), SystemClock())
    try:
        found = tuple(NewEvent(1, encode(event)) for event in events)
        ledger.append(Append(found, ledger.tail().seq, f"append-{ledger.tail().seq}", ledger.claim_term()))
    finally:
        ledger.close()


def test_what_the_orchestra_has_taken_in_is_known_until_it_has_ended(tmp_path: Path) -> None:
    settings = Settings(nodes={"majin": Node(host="old"), "spare": Node()})
    write_ledger(tmp_path, e.InitStarted("o"), e.NodeAdded(MAJIN), e.NodeAdded(NodeSpec(NodeId("gpu"), host="gpu")))
    assert [(spec.id, spec.host) for spec in known_nodes(tmp_path, settings)] == [("majin", "10.0.0.2"), ("spare", ""), ("gpu", "gpu")]
    assert [spec.id for spec in known_nodes(tmp_path, Settings())] == ["majin", "gpu"]
    write_ledger(tmp_path, e.InitCompleted(0), e.ShutdownStarted(False, True, 2), e.Terminated())
    assert [(spec.id, spec.host) for spec in known_nodes(tmp_path, settings)] == [("majin", "old"), ("spare", "")]


def test_nodes_are_chosen_by_name_each_once() -> None:
    assert choose_nodes(SPECS, ()) == SPECS
    assert choose_nodes(SPECS, ("majin", "here", "majin")) == (MAJIN, HERE)
    with pytest.raises(NotFound) as missing:
        choose_nodes(SPECS, ("majni",))
    assert (missing.value.field, missing.value.hint) == ("node", "did you mean 'majin'?")


@pytest.mark.parametrize(
    "name,target",
    [
        ("majin", SshTarget("10.0.0.2", "ai", 2222, "majin")),
        ("ai@mugen", SshTarget("mugen", "ai", 0)),
        ("mugen:2222", SshTarget("mugen", "", 2222)),
        ("ai@10.0.0.2:22", SshTarget("10.0.0.2", "ai", 22)),
        ("10.0.0.9", SshTarget("10.0.0.9", "", 0)),
        ("[fe80::1]", SshTarget("fe80::1", "", 0)),
        ("ai@[fe80::1]:2222", SshTarget("fe80::1", "ai", 2222)),
    ],
)
def test_a_machine_is_meant_by_name_or_by_address(name: str, target: SshTarget) -> None:
    assert trust_target(name, SPECS) == target


@pytest.mark.parametrize("name", ["mugne", "", "ai@", "a b@c", "-oProxyCommand=x", "ai@-oX=y", "a:70000", "a:b", "a@b@c", "fe80::1"])
def test_what_is_neither_is_refused(name: str) -> None:
    with pytest.raises(NotFound) as missing:
        trust_target(name, SPECS)
    assert "user@host:port" in missing.value.hint


def test_this_machine_shows_no_key() -> None:
    with pytest.raises(BadInput, match="is this machine"):
        trust_target("here", SPECS)


# --- what a look says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error,steps",
    [
        (None, [("reachable", True), ("host key", True), ("login", True)]),
        (NodeUnreachable("x", hint="mend"), [("reachable", False)]),
        (HostKeyRefused("x", hint="mend"), [("reachable", True), ("host key", False)]),
        (LoginRefused("x", hint="mend"), [("reachable", True), ("host key", True), ("login", False)]),
        (NodeFailed("x", hint="mend"), [("reachable", True), ("host key", True), ("login", True), ("python", False)]),
    ],
)
def test_the_way_to_a_machine_ends_where_it_failed(error: NodeFailed | None, steps: list[tuple[str, bool]]) -> None:
    found = way_in(MAJIN, error)
    assert [(each.name, each.ok) for each in found] == steps
    assert [each.fatal for each in found] == [not ok for _, ok in steps]
    if error is not None:
        assert (found[-1].detail, found[-1].remedy) == ("x", "mend")


def test_there_is_no_way_to_this_machine() -> None:
    assert way_in(HERE, None) == ()
    assert [each.name for each in way_in(HERE, NodeFailed("x"))] == ["python"]


def make_probe(**programs: str) -> NodeProbe:
    return msgspec.convert(
        {
            **dict.fromkeys(
                ("python", "python_version", "user", "home", "boot", "host", "folder", "folder_problem", "tmux", "tmux_path"), ""
            ),
            **dict.fromkeys(("uid", "cpus", "memory_bytes", "memory_available_bytes", "disk_free_bytes", "open_files_max"), 1),
            "processes_max": 1,
            "ms": 1,
            "folder_exists": True,
            "load_1m": 0.0,
            "node": "majin",
            "path": "/bin",
            "programs": programs,
        },
        NodeProbe,
    )


def test_kinds_are_those_whose_programs_are_there() -> None:
    found = kinds_finding(make_probe(sh="/bin/sh", python3="/bin/python3"), "any")
    assert (found.ok, found.detail) == (True, "node majin can run command, rehearsal, shell")
    wanted = kinds_finding(make_probe(sh="/bin/sh"), "rehearsal")
    assert (wanted.ok, wanted.fatal) == (False, False)
    assert wanted.detail == "node majin can run command, shell, but not rehearsal"
    assert wanted.remedy == "install python3 there, in ~/.local/bin or a folder that is in PATH without a login (/bin)"


async def test_this_machine_is_looked_at_for_real(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    closed = NodeSpec(NodeId("closed"), folder=str(tmp_path / "file" / "nodes"))
    here, other = await check_nodes(tmp_path, Settings(), (HERE, closed))
    assert (here.node, here.host, here.usable) == ("here", "", True)
    assert {"python", "tmux", "folder", "agent kinds"} <= {each.name for each in here.findings}
    assert not other.usable
    assert [each.name for each in other.findings if each.fatal] == ["folder"]


async def test_settings_that_cannot_be_used_are_told_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="cannot be read as a program"):
        await check_nodes(tmp_path, Settings(ssh=Ssh(passphrase_command="'open")), (MAJIN,))


# --- whose key -----------------------------------------------------------------------------------------------------------


def make_offer(file: Path, state: str = "changed", *old: KnownLine, names: tuple[str, ...] = ("majin",)) -> KeyOffer:
    return KeyOffer("majin", "majin:22", "ssh-ed25519", "SHA256:new", state, "it has CHANGED", str(file), NEW.strip(), names, old)


def test_a_key_is_judged_by_what_is_known() -> None:
    key, other = (asyncssh.generate_private_key("ssh-ed25519").convert_to_public() for _ in range(2))
    shown = HostKey("ssh-ed25519", key.get_fingerprint(), "")
    judge = trust._judge
    assert judge(shown, Trust()) == "new"
    assert judge(shown, Trust(keys=(KnownKey("f", 1, key),))) == "known"
    assert judge(shown, Trust(keys=(KnownKey("f", 1, other),))) == "", "only a login tells"
    assert judge(shown, Trust(authorities=(other,))) == ""
    assert judge(shown, Trust(keys=(KnownKey("f", 1, key),), revoked=(key,))) == "revoked"


def test_a_new_key_is_added_and_a_known_one_is_not(tmp_path: Path) -> None:
    file = tmp_path / "ssh" / "known_hosts"
    assert trust_key(make_offer(file, "new"), replace=False)
    assert file.read_text() == NEW
    assert not trust_key(make_offer(file, "known"), replace=True)
    assert file.read_text() == NEW


def test_a_changed_key_stays_unless_it_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    before = "# mine\nother ssh-rsa OTHER\nmajin ssh-ed25519 OLD\nmajin,other ssh-rsa OLD2 note\n|1|hash|ed= ssh-dss OLD3\n"
    file.write_text(before)
    lines = [KnownLine(str(file), 3, "OLD"), KnownLine(str(file), 4, "OLD2"), KnownLine(str(file), 5, "OLD3")]
    offer = make_offer(file, "changed", *lines)
    with pytest.raises(HostKeyRefused, match="has CHANGED") as refused:
        trust_key(offer, replace=False)
    assert "orchestra node trust majin --replace" in refused.value.hint
    assert file.read_text() == before
    assert trust_key(offer, replace=True)
    assert file.read_text() == "# mine\nother ssh-rsa OTHER\nother ssh-rsa OLD2 note\n" + NEW


@pytest.mark.parametrize(
    "line", ["maj* ssh-ed25519 OLD\n", "majin,*.example ssh-ed25519 OLD\n", "!majin,m* ssh-ed25519 OLD\n", "majin ssh-ed25519 MOVED\n"]
)
def test_a_line_that_others_may_need_or_that_has_changed_is_left(tmp_path: Path, line: str) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(line)
    with pytest.raises(NodeFailed) as refused:
        trust_key(make_offer(file, "changed", KnownLine(str(file), 1, "OLD")), replace=True)
    assert refused.value.hint in ("edit that line by hand", "try again")
    assert file.read_text() == line


def test_a_revoked_key_is_never_trusted(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    with pytest.raises(HostKeyRefused, match="is revoked"):
        trust_key(make_offer(file, "revoked"), replace=True)
    assert not file.exists()


# --- before a coordinator is started -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings,field",
    [
        (Settings(recovery=Recovery(fence_seconds=100_000.0)), "recovery.fence_seconds"),
        (Settings(provisioner=Provisioner(command="make 'it")), "provisioner.command"),
    ],
)
async def test_settings_no_coordinator_could_work_with_start_none(settings: Settings, field: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid) as refusal:
        await start_in_window(tmp_path / "root", settings)
    assert refusal.value.field == field
    assert not (tmp_path / "root").exists()


# --- a coordinator without agents ----------------------------------------------------------------------------------------


async def test_a_signal_ends_a_coordinator_that_has_nothing_to_end() -> None:
    fake = FakeUseCases().on("shutdown", IllegalMove("there is nothing to end"))
    obeying = asyncio.create_task(_obey_signals(fake.use_cases))
    await asyncio.sleep(0)
    signal.raise_signal(signal.SIGTERM)
    await obeying
    assert len(fake.asked("shutdown")) == 1


async def test_signals_ask_an_orchestra_to_end_first_gently_then_at_once() -> None:
    fake = FakeUseCases().on("shutdown", ShutdownReply("shutdown_initiated", 0, ""))
    obeying = asyncio.create_task(_obey_signals(fake.use_cases))
    await asyncio.sleep(0)
    for count in (1, 2):
        signal.raise_signal(signal.SIGINT)
        await fake.wait_asked("shutdown", count)
    assert [params.graceful for params in fake.asked("shutdown")] == [True, False]
    obeying.cancel()
    await asyncio.gather(obeying, return_exceptions=True)
