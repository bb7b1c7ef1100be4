"""What the SSH configuration comes to, which host keys are known, and the line a login shell gets."""

from __future__ import annotations

import subprocess
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra.errors import NodeUnreachable
from orchestra.nodes.ssh_config import SshOptions, SshTarget, interactive_argv, read_hop, read_route, trust_file
from orchestra.nodes.ssh_program import Mark, kill_script, shell_line
from orchestra.nodes.ssh_trust import HostKey, add_known_host, host_key, read_trust

CONFIG = """
Include {folder}/more
Host gpu-*
  HostName %h.example.test
  User worker
  Port 2222
  IdentityFile ~/keys/%h-%p
  IdentityFile {folder}/second
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known-%n ${{HOME}}/known
  GlobalKnownHostsFile none
  ProxyJump ops@gate,inner:2022
Host loose
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
Host none
  UserKnownHostsFile none
Host *
  ProxyJump gate
"""


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SshOptions:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    (tmp_path / "config").write_text(CONFIG.format(folder=tmp_path))
    (tmp_path / "more").write_text("Host inner\n  HostName 10.0.0.2\n  HostKeyAlias heart\n")
    return SshOptions(config_file=str(tmp_path / "config"))


def test_patterns_tokens_and_lists_are_understood(options: SshOptions, tmp_path: Path) -> None:
    hop = read_hop("gpu-7", "", 0, options)
    assert (hop.host, hop.port, hop.user) == ("gpu-7.example.test", 2222, "worker")
    assert hop.trust_name == "[gpu-7.example.test]:2222"
    assert hop.identity_files == (f"{tmp_path}/keys/gpu-7.example.test-2222", f"{tmp_path}/second")
    assert hop.identities_only
    assert hop.known_hosts == (f"{tmp_path}/known-gpu-7", f"{tmp_path}/known")
    assert hop.agent == "/agent"
    assert trust_file(SshTarget("gpu-7"), options) == tmp_path / "known-gpu-7"


def test_what_the_node_says_goes_before_the_configuration(options: SshOptions) -> None:
    hop = read_hop("gpu-7", "me", 23, options)
    assert (hop.user, hop.port, hop.trust_name) == ("me", 23, "[gpu-7.example.test]:23")


def test_included_files_and_aliases_of_host_keys_count(options: SshOptions) -> None:
    hop = read_hop("inner", "", 0, options)
    assert (hop.host, hop.port, hop.trust_name) == ("10.0.0.2", 22, "heart")


@pytest.mark.parametrize("host", ["loose", "none"])
def test_known_hosts_cannot_be_switched_off(options: SshOptions, host: str, tmp_path: Path) -> None:
    hop = read_hop(host, "", 0, options)
    assert hop.user_known_hosts == (f"{tmp_path}/.ssh/known_hosts", f"{tmp_path}/.ssh/known_hosts2")


def test_jumps_are_followed_in_order_and_not_in_circles(options: SshOptions) -> None:
    assert [(hop.alias, hop.user) for hop in read_route(SshTarget("gpu-1", "u"), options)][-3:] == [
        ("gate", "ops"),
        ("inner", read_hop("inner", "", 0, options).user),
        ("gpu-1", "u"),
    ]
    assert [hop.alias for hop in read_route(SshTarget("gate"), options)] == ["gate"]
    assert [hop.alias for hop in read_route(SshTarget("plain"), options)] == ["gate", "plain"]


@pytest.mark.parametrize(
    "text,host,port", [("h", "h", 22), ("u@h:7", "h", 7), ("[::1]:7", "::1", 7), ("::1", "::1", 22), ("ssh://u@h:8/", "h", 8)]
)
def test_a_jump_is_read_in_every_form(tmp_path: Path, text: str, host: str, port: int) -> None:
    (tmp_path / "config").write_text(f"Host far\n  ProxyJump {text}\n")
    first = read_route(SshTarget("far"), SshOptions(config_file=str(tmp_path / "config")))[0]
    assert (first.host, first.port) == (host, port)


def test_jumps_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("".join(f"Host h{number}\n  ProxyJump h{number + 1}\n" for number in range(20)))
    with pytest.raises(NodeUnreachable, match="more than 8 hosts"):
        read_route(SshTarget("h0"), SshOptions(config_file=str(tmp_path / "config")))


def test_a_file_that_is_named_has_to_be_there_and_the_usual_one_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_hop("h", "u", 0, SshOptions()).host == "h"
    assert read_hop("h", "u", 0, SshOptions(config_file="")).host == "h"
    with pytest.raises(NodeUnreachable, match="cannot be read"):
        read_hop("h", "u", 0, SshOptions(config_file="/nowhere"))


def test_a_terminal_keeps_the_rules_too(options: SshOptions, tmp_path: Path) -> None:
    argv = interactive_argv(SshTarget("loose", "me", 2022), options, "exec true")
    assert argv[:4] == ("ssh", "-t", "-F", f"{tmp_path}/config")
    assert argv[-6:] == ("2022", "-l", "me", "--", "loose", "exec true")
    assert "StrictHostKeyChecking=yes" in argv
    assert f'UserKnownHostsFile="{tmp_path}/.ssh/known_hosts" "{tmp_path}/.ssh/known_hosts2"' in argv
    assert {"ServerAliveInterval=5", "ServerAliveCountMax=2", "ForwardAgent=no"} <= set(argv)


# --- host keys ---------------------------------------------------------------------------------------------------------


def line(name: str, key: asyncssh.SSHKey) -> str:
    return f"{name} {key.export_public_key('openssh').decode().strip()}\n"


def test_a_name_with_its_port_goes_before_the_name_alone(tmp_path: Path) -> None:
    with_port, without = (asyncssh.generate_private_key("ssh-ed25519").convert_to_public() for _ in range(2))
    known = tmp_path / "known"
    (tmp_path / "config").write_text(f"Host *\n  UserKnownHostsFile {known}\n  GlobalKnownHostsFile none\n")
    hop = read_hop("h.test", "u", 2222, SshOptions(config_file=str(tmp_path / "config")))
    assert read_trust(hop).keys == ()
    known.write_text("nonsense\n\n" + line("h.test,other", without))
    assert [(each.number, each.key) for each in read_trust(hop).keys] == [(3, without)]
    known.write_text(line("h.test", without) + line("[h.test]:2222", with_port))
    assert [(each.number, each.key) for each in read_trust(hop).keys] == [(2, with_port)]
    known.write_text(line("[*.test]:2222", with_port) + line("@cert-authority *.test", without))
    assert [each.key for each in read_trust(hop).keys] == [with_port]
    assert host_key(hop, with_port).line == line("[h.test]:2222", with_port).strip()


def test_algorithms_of_known_keys_are_asked_for_first(tmp_path: Path) -> None:
    known = tmp_path / "known"
    (tmp_path / "config").write_text(f"Host *\n  UserKnownHostsFile {known}\n  GlobalKnownHostsFile none\n")
    hop = read_hop("h", "u", 0, SshOptions(config_file=str(tmp_path / "config")))
    assert read_trust(hop).algorithms()[0] == "ssh-ed25519"
    known.write_text(line("h", asyncssh.generate_private_key("ssh-rsa", key_size=2048).convert_to_public()))
    assert read_trust(hop).algorithms()[:2] == ["rsa-sha2-512", "rsa-sha2-256"]
    known.write_text(line("@cert-authority h", asyncssh.generate_private_key("ssh-ed25519").convert_to_public()))
    assert read_trust(hop).algorithms() == []


def test_a_key_is_added_once_and_through_a_link(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_text("a ssh-ed25519 AAAA")
    link = tmp_path / "link"
    link.symlink_to(real)
    key = HostKey("ssh-ed25519", "SHA256:x", "b ssh-ed25519 BBBB")
    assert add_known_host(link, key) is True
    assert add_known_host(link, key) is False
    assert link.is_symlink()
    assert real.read_text() == "a ssh-ed25519 AAAA\nb ssh-ed25519 BBBB\n"
    fresh = tmp_path / "new" / "known_hosts"
    assert add_known_host(fresh, key) is True
    assert (fresh.stat().st_mode & 0o777, fresh.parent.stat().st_mode & 0o777) == (0o600, 0o700)


# --- the line ----------------------------------------------------------------------------------------------------------

NOT_AGREED_ON = frozenset("'\\!\n%")
"""What shells do not all take as it is between single quotes, or printf does not."""


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20), max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_line_brings_every_argument_through_a_shell(words: list[str]) -> None:
    mark = Mark()
    line = shell_line(mark.script(("printf", "<%s>", *words)))
    quoted = line.partition("' '")[2].removesuffix("'")
    assert not (set(quoted.replace("\\0", "").replace("\\1", "").replace("\\2", "").replace("\\3", "")) & NOT_AGREED_ON)
    out = subprocess.run(["/bin/sh", "-c", line], capture_output=True, check=True, timeout=30).stdout
    match = mark.line.match(out)
    assert match is not None
    assert out[match.end() :].decode() == "".join(f"<{word}>" for word in words or [""])
    assert mark.line.search(line.encode()) is None


def run(script: str) -> bytes:
    return subprocess.run(["/bin/sh", "-c", shell_line(script)], capture_output=True, check=False, timeout=30).stdout


def test_only_the_very_process_is_killed() -> None:
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        start = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
        run(kill_script(child.pid, start + 1))
        assert child.poll() is None
        run(kill_script(child.pid, start))
        assert child.wait(30) == -9
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("pid", [0, 1])
def test_everything_is_never_killed(pid: int) -> None:
    assert kill_script(pid, 5) == "exit 0"


def test_a_program_tells_who_it_is() -> None:
    mark = Mark()
    out = run(mark.script(("/bin/sh", "-c", "cat /proc/$$/stat")))
    match = mark.line.match(out)
    assert match is not None
    fields = out[match.end() :].decode()
    assert fields.split()[0] == match[1].decode()
    assert fields.rpartition(")")[2].split()[19] == match[2].decode()
