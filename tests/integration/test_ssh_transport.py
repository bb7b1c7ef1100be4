"""Programs on a node over SSH, against a real sshd on 127.0.0.1."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest

from orchestra.core.model import Worker
from orchestra.errors import HostKeyRefused, LoginRefused, NodeFailed, NodeUnreachable
from orchestra.ids import AgentId, AttemptId, NodeId, TaskId
from orchestra.node import AgentWindow, AttemptOrder, JournalBatch, Notice, Record
from orchestra.nodes.ssh import SshTarget, SshTransport, add_known_host, offered_host_key, trust_file
from orchestra.nodes.tmux_node import NodeOptions, TmuxNode
from orchestra.nodes.transport import Channel, LocalTransport
from tests.integration.ssh_support import ALIAS, HOST, PATIENCE_S, Sshd, command, contents, free_port, make_key, public, sshd_of

TIMEOUT_MS = PATIENCE_S * 1000
HOSTILE = ("a'b", "c\\d", "e\nf", "!x", "%s%n", "\u00e9\udcff", "$HOME", "`id`", "", "  ", "*", "~", '"', "=x", "-n", "\\'", "#", ";", "\t")


sshd = sshd_of


@asynccontextmanager
async def connected(server: Sshd, **options: object) -> AsyncIterator[SshTransport]:
    transport = SshTransport(server.target(), server.options(**options))
    try:
        yield transport
    finally:
        await transport.close()


async def read_until(channel: Channel, ending: bytes) -> bytes:
    """Reads until the output ends with these bytes, or ends."""
    data = b""
    async with asyncio.timeout(PATIENCE_S):
        while not data.endswith(ending):
            part = await channel.read()
            if not part:
                break
            data += part
    return data


async def wait_gone(pid: int) -> None:
    """Waits until a process has ended; the test's time limit is what ends the wait otherwise."""
    await until(lambda: not alive(pid))


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something no event tells of; each look costs the start of a program."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await LocalTransport().run(("true",), timeout_ms=TIMEOUT_MS)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- programs ----------------------------------------------------------------------------------------------------------


async def test_a_program_runs_to_its_end(sshd: Sshd) -> None:
    async with connected(sshd) as transport:
        script = "cat; echo oops >&2; exit 3"
        done = await transport.run(("/bin/sh", "-c", script), stdin=b"in\0\xff\n", timeout_ms=TIMEOUT_MS)
        assert (done.code, done.out, done.err) == (3, b"in\0\xff\n", b"oops\n")
        assert (await transport.run(("/bin/sh", "-c", "kill -9 $$"), timeout_ms=TIMEOUT_MS)).code == -9
        assert (await transport.run(("/bin/sh", "-c", "kill -TERM $$"), timeout_ms=TIMEOUT_MS)).code == -15
        missing = await transport.run(("/nowhere/x",), timeout_ms=TIMEOUT_MS)
        assert (missing.code, missing.err) == (127, b"cannot start /nowhere/x: No such file or directory\n")


async def test_arguments_arrive_as_they_are(sshd: Sshd) -> None:
    async with connected(sshd) as transport:
        show = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(os.fsencode(each) for each in sys.argv[1:]))"
        done = await transport.run((sys.executable, "-c", show, *HOSTILE), timeout_ms=TIMEOUT_MS)
        assert done.out.split(b"\0") == [os.fsencode(each) for each in HOSTILE]


async def test_nothing_of_the_connection_is_in_the_environment(sshd: Sshd) -> None:
    async with connected(sshd) as transport:
        done = await transport.run(("env",), timeout_ms=TIMEOUT_MS)
    names = {line.partition(b"=")[0] for line in done.out.splitlines()}
    assert b"HOME" in names
    assert [name for name in names if name.startswith(b"SSH_") or name == b"TERM"] == []


@pytest.mark.parametrize(
    "noise", ["echo Welcome!", "printf 'no newline at the end '", "echo; echo; id; set -x", "head -c 200000 /dev/zero"]
)
async def test_what_start_up_files_print_is_dropped(sshd: Sshd, noise: str) -> None:
    (sshd.home / ".bashrc").write_text(f"{noise}\n")
    async with connected(sshd) as transport:
        done = await transport.run(("echo", "hello"), timeout_ms=TIMEOUT_MS)
        assert (done.code, done.out) == (0, b"hello\n")
        channel = await transport.open(("cat",))
        channel.write(b"x\n")
        assert await read_until(channel, b"\n") == b"x\n"
        await channel.close()


@pytest.mark.parametrize("noise", ["echo not today; exit 1", "exec head -c 400000 /dev/zero"])
async def test_a_shell_that_does_not_start_it_is_told_from_a_failure(sshd: Sshd, noise: str) -> None:
    (sshd.home / ".bashrc").write_text(f"{noise}\n")
    async with connected(sshd) as transport:
        with pytest.raises(NodeFailed, match=r"did not start echo; it printed .*(not today|\\x00)"):
            await transport.run(("echo", "hello"), timeout_ms=TIMEOUT_MS)
        with pytest.raises(NodeFailed, match="did not start cat"):
            await transport.open(("cat",))


async def test_a_channel_carries_bytes_both_ways(sshd: Sshd) -> None:
    data = os.urandom(5_000_000)
    async with connected(sshd) as transport:
        channel = await transport.open(("/bin/sh", "-c", "cat; exit 5"))

        async def feed() -> None:
            for at in range(0, len(data), 100_000):
                channel.write(data[at : at + 100_000])
                await channel.drain()

        feeding = asyncio.create_task(feed())
        got = b""
        async with asyncio.timeout(PATIENCE_S):
            while len(got) < len(data):
                got += await channel.read()
            await feeding
        assert got == data
        await channel.close()
        assert await channel.wait_closed() == 5
        assert await channel.read() == b""
        channel.write(b"nobody is there")


async def test_a_program_waits_when_its_output_is_not_read(sshd: Sshd, tmp_path: Path) -> None:
    written, count = tmp_path / "written", 40
    script = f"import sys\nfor n in range({count}):\n sys.stdout.write('x' * 100000); sys.stdout.flush(); open({str(written)!r}, 'a').write('x')\n"
    async with connected(sshd, unread_bytes_max=10_000, window_bytes=100_000) as transport:
        channel = await transport.open((sys.executable, "-c", script))
        await until(written.exists)
        # Many round trips of the same connection: what could still come for the channel has come.
        for _ in range(20):
            await transport.run(("true",), timeout_ms=TIMEOUT_MS)
        assert written.stat().st_size < count // 2
        assert len(await read_until(channel, b"?")) == count * 100_000
        assert written.stat().st_size == count
        assert await channel.wait_closed() == 0


async def test_a_program_that_is_not_there_cannot_be_opened(sshd: Sshd) -> None:
    async with connected(sshd) as transport:
        with pytest.raises(NodeFailed, match="there is no such program"):
            await transport.open(("/nowhere/x",))


async def test_closing_a_channel_ends_its_program(sshd: Sshd) -> None:
    async with connected(sshd, close_grace_ms=100) as transport:
        channel = await transport.open(("/bin/sh", "-c", "echo $$; sleep 1000 & wait"))
        pid = int(await read_until(channel, b"\n"))
        await channel.close()
        await wait_gone(pid)
        await channel.close()
        polite = await transport.open(("/bin/sh", "-c", "echo up; cat; exit 7"))
        assert await read_until(polite, b"\n") == b"up\n"
        await polite.close()
        assert await polite.wait_closed() == 7


async def test_a_program_whose_time_is_over_is_killed_with_its_children(sshd: Sshd, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    async with connected(sshd) as transport:
        with pytest.raises(TimeoutError):
            await transport.run(("/bin/sh", "-c", f"sleep 1000 & echo $! $$ > {pids}; wait"), timeout_ms=500)
        for pid in pids.read_text().split():
            await wait_gone(int(pid))
        with pytest.raises(TimeoutError):  # one that takes no input does not keep its channel
            await transport.run(("sleep", "1000"), stdin=b"x" * 8_000_000, timeout_ms=500)
        assert (await transport.run(("true",), timeout_ms=TIMEOUT_MS)).code == 0


async def test_a_program_that_prints_too_much_is_ended(sshd: Sshd) -> None:
    async with connected(sshd, output_bytes_max=100_000, error_bytes_max=10) as transport:
        with pytest.raises(NodeFailed, match="printed more than 100000 bytes"):
            await transport.run(("/bin/sh", "-c", "exec yes"), timeout_ms=TIMEOUT_MS)
        done = await transport.run(("/bin/sh", "-c", "echo 0123456789abc >&2"), timeout_ms=TIMEOUT_MS)
        assert done.err == b"456789abc\n"


async def test_a_daemon_that_keeps_the_pipes_does_not_hold_up_the_answer(sshd: Sshd) -> None:
    async with connected(sshd, close_grace_ms=100) as transport:
        done = await transport.run(("/bin/sh", "-c", "echo said; sleep 1000 & echo $!"), timeout_ms=TIMEOUT_MS)
        said, pid = done.out.split()
        assert (done.code, said) == (0, b"said")
        os.kill(int(pid), signal.SIGKILL)


async def test_many_programs_share_one_connection(sshd: Sshd) -> None:
    async with connected(sshd) as transport:
        held = [await transport.open(("cat",)) for _ in range(2)]
        runs = [
            transport.run(("/bin/sh", "-c", f"echo {number}; cat"), stdin=b"%d\n" % number, timeout_ms=TIMEOUT_MS) for number in range(40)
        ]
        done = await asyncio.gather(*runs)
        assert [each.out for each in done] == [b"%d\n%d\n" % (number, number) for number in range(40)]
        assert len(connections(sshd)) == 1
        for channel in held:
            await channel.close()


def connections(server: Sshd) -> list[str]:
    return [line for line in server.log.read_text().splitlines() if line.startswith("Accepted publickey")]


async def test_callers_that_give_up_leave_the_places_free(sshd: Sshd) -> None:
    async with connected(sshd, channels_max=2) as transport:
        await transport.run(("true",), timeout_ms=TIMEOUT_MS)
        for _ in range(12):
            waiting = asyncio.create_task(transport.run(("cat",), timeout_ms=TIMEOUT_MS))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
        assert (await transport.run(("echo", "free"), timeout_ms=TIMEOUT_MS)).out == b"free\n"


# --- who is there, and who may come in ---------------------------------------------------------------------------------


async def test_an_unknown_host_key_is_refused_until_it_is_added(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")
    async with connected(sshd) as transport:
        with pytest.raises(HostKeyRefused, match="is not known: it shows ssh-ed25519 SHA256:") as caught:
            await transport.run(("true",), timeout_ms=TIMEOUT_MS)
        assert caught.value.hint == "orchestra node trust n1"
        assert caught.value.code == "host_key_refused"
        offered = await offered_host_key(sshd.target(), sshd.options())
        kind, key = public(sshd.host_key).split()[:2]
        assert (offered.kind, offered.line) == (kind, f"[{HOST}]:{sshd.port} {kind} {key}")
        assert offered.fingerprint in str(caught.value)
        file = trust_file(sshd.target(), sshd.options())
        assert file == sshd.known_hosts
        assert add_known_host(file, offered) is True
        assert add_known_host(file, offered) is False
        assert file.read_text().count("\n") == 1
        assert file.stat().st_mode & 0o777 == 0o600
        assert (await transport.run(("true",), timeout_ms=TIMEOUT_MS)).code == 0


@pytest.mark.parametrize("extra", ["StrictHostKeyChecking no", "StrictHostKeyChecking no\n  CheckHostIP no\n  VerifyHostKeyDNS yes"])
async def test_a_configuration_cannot_switch_the_check_off(sshd: Sshd, extra: str) -> None:
    sshd.known_hosts.write_text("")
    sshd.configure(f"  {extra}")
    async with connected(sshd) as transport:
        with pytest.raises(HostKeyRefused):
            await transport.run(("true",), timeout_ms=TIMEOUT_MS)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
async def test_a_changed_host_key_is_refused_with_all_there_is_to_know(sshd: Sshd, kind: str) -> None:
    sshd.known_hosts.write_text(f"# mine\n{sshd.known_hosts.read_text()}")
    before = (await offered_host_key(sshd.target(), sshd.options())).fingerprint
    make_key(sshd.host_key, "-t", kind)
    sshd.restart()
    after = (await offered_host_key(sshd.target(), sshd.options())).fingerprint
    async with connected(sshd) as transport:
        with pytest.raises(HostKeyRefused, match="has CHANGED") as caught:
            await transport.run(("true",), timeout_ms=TIMEOUT_MS)
    assert before != after
    for part in (before, after, f"line 2 of {sshd.known_hosts}"):
        assert part in caught.value.message
    assert "orchestra node trust n1 --replace" in caught.value.hint
    command("ssh-keygen", "-R", f"[{HOST}]:{sshd.port}", "-f", str(sshd.known_hosts))
    add_known_host(sshd.known_hosts, await offered_host_key(sshd.target(), sshd.options()))
    async with connected(sshd) as transport:
        assert (await transport.run(("true",), timeout_ms=TIMEOUT_MS)).code == 0


async def test_hashed_names_aliases_and_revoked_keys_are_understood(sshd: Sshd) -> None:
    command("ssh-keygen", "-q", "-H", "-f", str(sshd.known_hosts))
    assert sshd.known_hosts.read_text().startswith("|1|")
    async with connected(sshd) as transport:
        assert (await transport.run(("true",), timeout_ms=TIMEOUT_MS)).code == 0
    kind, key = public(sshd.host_key).split()[:2]
    sshd.known_hosts.write_text(f"machine-7 {kind} {key}\n")
    sshd.configure("  HostKeyAlias machine-7")
    async with connected(sshd) as transport:
        assert (await transport.run(("true",), timeout_ms=TIMEOUT_MS)).code == 0
    sshd.known_hosts.write_text(f"machine-7 {kind} {key}\n@revoked machine-7 {kind} {key}\n")
    async with connected(sshd) as transport:
        with pytest.raises(HostKeyRefused, match="revoked"):
            await transport.run(("true",), timeout_ms=TIMEOUT_MS)


async def test_a_wrong_key_is_named_when_the_login_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    wrong = make_key(tmp_path / "wrong")
    sshd.configure(key=wrong)
    async with connected(sshd) as transport:
        with pytest.raises(LoginRefused) as caught:
            await transport.run(("true",), timeout_ms=TIMEOUT_MS)
    assert f"({wrong})" in caught.value.message
    assert "SHA256:" in caught.value.message
    assert "authorized_keys" in caught.value.hint
    assert caught.value.code == "login_refused"


async def test_a_missing_key_is_told_from_a_wrong_one(sshd: Sshd, tmp_path: Path) -> None:
    sshd.configure(key=tmp_path / "nowhere")
    async with connected(sshd) as transport:
        with pytest.raises(LoginRefused, match="keys shown: none"):
            await transport.run(("true",), timeout_ms=TIMEOUT_MS)


async def test_an_encrypted_key_opens_with_what_the_command_prints(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = make_key(tmp_path / "locked", "-t", "ecdsa", "-m", "PKCS8", passphrase="open sesame")
    sshd.accept(key)
    other = make_key(tmp_path / "other", "-t", "ecdsa", "-m", "PKCS8", passphrase="open sesame")
    sshd.configure(f"  IdentityFile {other}", key=key)
    count = tmp_path / "count"
    asks = ("/bin/sh", "-c", f"echo asked >> {count}; echo 'open sesame'; echo more")
    async with connected(sshd, passphrase_command=asks) as transport:
        assert (await transport.run(("true",), timeout_ms=TIMEOUT_MS)).code == 0
    assert count.read_text() == "asked\n"
    async with connected(sshd) as transport:
        with pytest.raises(LoginRefused, match="it is encrypted"):
            await transport.run(("true",), timeout_ms=TIMEOUT_MS)
        monkeypatch.setenv("ORCHESTRA_SSH_PASSPHRASE", "open sesame")
        assert (await transport.run(("true",), timeout_ms=TIMEOUT_MS)).code == 0
    async with connected(sshd, passphrase_command=("/bin/sh", "-c", "echo wrong")) as transport:
        with pytest.raises(LoginRefused, match=r"not shown: .*locked") as caught:
            await transport.run(("true",), timeout_ms=TIMEOUT_MS)
        assert "wrong" not in str(caught.value)
    async with connected(sshd, passphrase_command=("/bin/sh", "-c", "exit 4")) as transport:
        with pytest.raises(LoginRefused, match="passphrase command /bin/sh ended with code 4"):
            await transport.run(("true",), timeout_ms=TIMEOUT_MS)


async def test_a_server_that_takes_no_more_keys_is_understood(sshd: Sshd, tmp_path: Path) -> None:
    wrong = make_key(tmp_path / "wrong")
    sshd.settings = "MaxAuthTries 1"
    sshd.restart()
    sshd.configure(f"  IdentityFile {sshd.login_key}", key=wrong)
    async with connected(sshd) as transport:
        with pytest.raises(LoginRefused) as caught:
            await transport.run(("true",), timeout_ms=TIMEOUT_MS)
    assert f"({wrong})" in caught.value.message
    assert f"({sshd.login_key})" in caught.value.message


async def test_an_agent_is_asked_for_its_keys(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = make_key(tmp_path / "held")
    sshd.accept(key)
    started = command("ssh-agent", "-s", "-a", str(tmp_path / "agent"))
    pid = int(started.decode().partition("SSH_AGENT_PID=")[2].partition(";")[0])
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        command("ssh-add", "-q", str(key))
        key.unlink()  # only its public half is left beside
        sshd.configure(key=key)
        async with connected(sshd) as transport:
            assert (await transport.run(("true",), timeout_ms=TIMEOUT_MS)).code == 0
            assert (await transport.run(("/bin/sh", "-c", "echo $SSH_AUTH_SOCK"), timeout_ms=TIMEOUT_MS)).out == b"\n"
    finally:
        os.kill(pid, signal.SIGTERM)
        await wait_gone(pid)


async def test_a_jump_host_is_used_and_checked_too(sshd: Sshd) -> None:
    sshd.config.write_text(
        sshd.config.read_text() + f"Host far\n  ProxyJump {ALIAS}\n" + sshd.config.read_text().replace(f"Host {ALIAS}", "Host far")
    )
    target = SshTarget("far", name="n2")
    transport = SshTransport(target, sshd.options())
    try:
        assert (await transport.run(("echo", "there"), timeout_ms=TIMEOUT_MS)).out == b"there\n"
        assert len(connections(sshd)) == 2
    finally:
        await transport.close()
    offered = await offered_host_key(target, sshd.options())
    assert offered.line in sshd.known_hosts.read_text()
    sshd.known_hosts.write_text("")
    with pytest.raises(HostKeyRefused) as caught:
        await offered_host_key(target, sshd.options())
    assert caught.value.hint == f"ssh {ALIAS}"


# --- a node that cannot be reached -------------------------------------------------------------------------------------


async def test_each_way_not_to_be_there_has_its_own_words(sshd: Sshd) -> None:
    sshd.stop()
    async with connected(sshd) as transport:
        failures = await asyncio.gather(*(transport.run(("true",), timeout_ms=TIMEOUT_MS) for _ in range(20)), return_exceptions=True)
    assert all(type(each) is NodeUnreachable and "refused the connection" in each.message for each in failures)
    for name in ("::1%nowhere", "a" * 70 + ".test"):  # no resolver is asked for either
        nobody = SshTransport(SshTarget(name), sshd.options())
        with pytest.raises(NodeUnreachable, match=f"the name {name} was not found"):
            await nobody.run(("true",), timeout_ms=TIMEOUT_MS)
    with pytest.raises(NodeUnreachable, match="cannot be read"):
        await SshTransport(SshTarget("x"), sshd.options().__class__(config_file="/nowhere/config")).open(("true",))
    sshd.config.write_text("Host box\n  Port many\n")
    with pytest.raises(NodeUnreachable, match="line 2: Invalid Port"):
        await SshTransport(sshd.target(), sshd.options()).open(("true",))


async def test_a_listener_that_says_nothing_is_given_up(sshd: Sshd) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    sshd.stop()
    server = await asyncio.start_server(silent, HOST, sshd.port)
    async with server, connected(sshd, connect_timeout_ms=300) as transport:
        with pytest.raises(NodeUnreachable, match="did not answer within 300 ms"):
            await transport.run(("true",), timeout_ms=TIMEOUT_MS)


async def test_a_listener_that_hangs_up_is_told_from_one_that_is_not_there(sshd: Sshd) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    sshd.stop()
    server = await asyncio.start_server(rude, HOST, sshd.port)
    async with server, connected(sshd) as transport:
        with pytest.raises(NodeUnreachable, match="ended the connection before the login"):
            await transport.run(("true",), timeout_ms=TIMEOUT_MS)


async def test_a_restarted_server_keeps_what_runs(sshd: Sshd) -> None:
    async with connected(sshd) as transport:
        channel = await transport.open(("cat",))
        sshd.restart()
        channel.write(b"still here\n")
        assert await read_until(channel, b"\n") == b"still here\n"
        await channel.close()


async def test_a_lost_connection_ends_its_channels_and_is_made_again(sshd: Sshd, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    async with connected(sshd) as transport:
        channel = await transport.open(("cat",))
        running = asyncio.create_task(transport.run(("/bin/sh", "-c", f"echo $$ > {pid}; exec sleep 1000"), timeout_ms=TIMEOUT_MS))
        other = await transport.open(("/bin/sh", "-c", "echo $PPID; exec cat"))
        session = int(await read_until(other, b"\n"))
        await until(lambda: pid.exists() and pid.read_text() != "")
        os.kill(session, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):
            assert await channel.read() == b""
            assert await channel.wait_closed() is None
            with pytest.raises(NodeUnreachable, match="ended"):
                await running
        assert alive(int(pid.read_text())), "what runs does not end with the connection"
        os.kill(int(pid.read_text()), signal.SIGKILL)
        channel.write(b"nobody is there")
        await channel.close()
        assert (await transport.run(("echo", "again"), timeout_ms=TIMEOUT_MS)).out == b"again\n"
        assert len(connections(sshd)) == 2


async def test_a_link_that_is_dead_is_noticed_after_three_keepalives(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[float] = []
    send = asyncssh.SSHClientConnection._make_keepalive_request

    async def counted(self: asyncssh.SSHClientConnection) -> None:
        sent.append(time.monotonic())
        await send(self)

    async with connected(sshd, keepalive_ms=200) as transport:
        channel = await transport.open(("/bin/sh", "-c", "echo $PPID; exec cat"))
        session = int(await read_until(channel, b"\n"))
        monkeypatch.setattr(asyncssh.SSHClientConnection, "_make_keepalive_request", counted)
        os.kill(session, signal.SIGSTOP)
        try:
            async with asyncio.timeout(PATIENCE_S):
                assert await channel.read() == b""
                assert await channel.wait_closed() is None
            assert len(sent) <= 3
        finally:
            os.kill(session, signal.SIGKILL)
        assert (await transport.run(("echo", "again"), timeout_ms=TIMEOUT_MS)).out == b"again\n"


async def test_a_transport_that_was_closed_may_be_used_again(sshd: Sshd) -> None:
    async with connected(sshd) as transport:
        channel = await transport.open(("cat",))
        await transport.close()
        assert await channel.read() == b""
        await transport.close()
        assert (await transport.run(("echo", "again"), timeout_ms=TIMEOUT_MS)).out == b"again\n"
    assert LocalTransport().interactive(["tmux", "attach"]) == ("tmux", "attach")


# --- a port of this machine there ------------------------------------------------------------------------------------


@asynccontextmanager
async def a_service(text: bytes) -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def fetched(port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = await reader.read()
    writer.close()
    return found


async def there(transport: SshTransport, port: int) -> int:
    try:
        return await transport.expose(port)
    except NodeFailed:
        return 0


async def test_a_port_of_this_machine_is_reached_at_the_same_place_after_every_connect(sshd: Sshd) -> None:
    wanted = (free_port(), free_port())
    transport = SshTransport(sshd.target(), sshd.options(exposed_ports=wanted))
    try:
        async with a_service(b"gateway") as port:
            assert await transport.expose(port) == wanted[0]
            assert await transport.expose(port) == wanted[0]
            assert [await fetched(each) for each in wanted] == [b"gateway", b"gateway"]
            await transport.close()
            async with asyncio.timeout(PATIENCE_S):
                while (await there(transport, port)) != wanted[0]:  # the server takes a moment to let go of the old connection's
                    pass
            assert await fetched(wanted[0]) == b"gateway"
        async with a_service(b"its successor") as port:
            assert await transport.expose(port) in wanted
            assert await fetched(await transport.expose(port)) == b"its successor"
    finally:
        await transport.close()


async def test_a_server_that_forwards_nothing_is_told_with_the_remedy(sshd: Sshd) -> None:
    sshd.settings = "AllowTcpForwarding no"
    sshd.restart()
    transport = SshTransport(sshd.target(), sshd.options(exposed_ports=(free_port(),)))
    try:
        with pytest.raises(NodeFailed, match="AllowTcpForwarding"):
            await transport.expose(1)
    finally:
        await transport.close()


# --- a person's terminal, and a whole node -----------------------------------------------------------------------------


async def test_a_terminal_gets_there_with_the_ssh_command(sshd: Sshd) -> None:
    argv = SshTransport(sshd.target(), sshd.options()).interactive(("/bin/sh", "-c", 'test -t 0 && printf "%s|" "$@"', "sh", *HOSTILE[:5]))
    assert argv[:2] == ("ssh", "-t")
    seen = command("script", "-qec", shlex.join(argv), "/dev/null")
    assert "".join(f"{each}|" for each in HOSTILE[:5]).encode() in seen.replace(b"\r\n", b"\n")


async def test_a_whole_node_over_ssh(sshd: Sshd) -> None:
    runtime = sshd.folder / "run-{uid}"
    options = NodeOptions(
        folder="~/node", runtime=str(runtime), session="t-n1-1", session_prefix="t-n1-", programs=("sh", "no-such-program")
    )
    node = TmuxNode(NodeId("n1"), SshTransport(sshd.target(), sshd.options()), options)
    server = str(runtime).replace("{uid}", str(os.getuid())) + "/tmux.sock"
    try:
        facts = await node.start(0)
        assert (sshd.home / "node" / "stage").is_dir()
        assert facts.programs == {"sh": facts.programs["sh"]}
        assert facts.memory_available_bytes > 0
        assert facts.boot == contents("/proc/sys/kernel/random/boot_id").decode().strip()
        assert abs(facts.clock_offset_ms) < 60_000
        agents = [AgentId(number) for number in range(1, 6)]
        await node.open_windows([AgentWindow(agent, f"a{agent}") for agent in agents])
        seen: list[Record] = []
        async with asyncio.timeout(PATIENCE_S):
            reports = node.reports()
            attempt = AttemptId(TaskId("build"), 1)
            async for report in reports:
                seen += report.records if isinstance(report, JournalBatch) else ()
                if len([each for each in seen if each.kind == "ready"]) == 5:
                    break
            assert await node.order([AttemptOrder(attempt, agents[0], spec())]) == []
            async for report in reports:
                assert not isinstance(report, Notice) or report.kind != "channel-lost"
                seen += report.records if isinstance(report, JournalBatch) else ()
                if any(each.kind == "done" for each in seen):
                    break
        (done,) = [each for each in seen if each.kind == "done"]
        assert (done.task, done.attempt, done.body["exit"]["code"]) == ("build", 1, 0)
        environment = contents(f"/proc/{done.worker.pid}/environ").split(b"\0")
        assert [each for each in environment if each.startswith((b"SSH_", b"TERM="))] in (
            [],
            [b"TERM=tmux-256color"],
            [b"TERM=screen-256color"],
        )
        assert (await node.attach_argv(agents[0]))[0] == "ssh"
        again = await node.facts()
        assert again.host == facts.host
        assert abs(again.clock_offset_ms) <= again.clock_error_ms + 1
        found = {each.agent: each.worker for each in (await node.inventory([])).workers if each.worker is not None}
        workers = list(found.values())
        assert len(workers) == 5
        await node.renew_lease(60_000)
        last = found[agents[4]]
        assert await node.kill_worker(agents[4], Worker(last.pid, last.start + 1)) is False
        assert await node.kill_worker(agents[4], last) is True
        await wait_gone(last.pid)
        await node.stop()
        assert (await node.start(0)).session == facts.session
        await node.close_all()
        for worker in workers:
            assert isinstance(worker, Worker)
            await wait_gone(worker.pid)
    finally:
        await node.stop()
        await LocalTransport().run(("tmux", "-S", server, "kill-server"), timeout_ms=TIMEOUT_MS)


def spec() -> dict[str, object]:
    return {
        "v": 1,
        "task": "build",
        "attempt": 1,
        "agent": 1,
        "argv": ["true"],
        "env": {},
        "env_pass": [],
        "cwd": None,
        "stdin": "null",
        "timeout_ms": 60_000,
        "grace_ms": 1000,
        "umask": 18,
        "limits": {},
        "output": {"file_bytes_max": 1 << 20, "line_bytes_max": 65536, "view": "lines"},
        "signals": [],
        "success": {"codes": [0], "signal": None},
        "checks": [],
        "marker": "---END---",
        "title": "build",
    }
