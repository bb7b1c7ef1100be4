"""The lab itself: its machines are separate, its faults are what they claim to be, and nothing of it stays."""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Final

import pytest
import yaml

from orchestra.errors import OrchestraError
from orchestra.testing.lab import Lab, LabNode, control, processes
from orchestra.testing.lab import lab as lab_module
from orchestra.testing.lab.wire import HUB_ADDRESS

WAIT_S: Final = 30.0
"""Longest a test waits for anything; a deadline, never a measure."""
ECHO_PORT: Final = 7000
NOBODY: Final = 65534
TOTAL_RETRANS: Final = 100
"""Offset of tcpi_total_retrans in the kernel's struct tcp_info."""
RETRANSMISSIONS: Final = 2
"""After so many the kernel has waited for an acknowledgement more than once, each time longer."""

ECHO: Final = f"""
import os, socket, sys
tcp, udp = socket.create_server(("0.0.0.0", {ECHO_PORT})), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", {ECHO_PORT}))
if os.fork():
    sys.exit()
os.setsid()
os.dup2(os.open("/dev/null", os.O_RDWR), 1), os.dup2(1, 2)
if os.fork():
    count = 0
    while True:
        data, client = udp.recvfrom(100)
        count += 1
        udp.sendto(b"%d %s" % (count, data), client)
while True:
    client, _ = tcp.accept()
    while data := client.recv(4096):
        open("/tmp/heard", "ab").write(data)
        client.sendall(data)
"""
"""Says back what it hears, and notes what came by TCP. Its first process ends when it listens."""


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Waits for what the kernel is about to do; fails with `what` after the deadline."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        select.select([], [], [], 0.005)


def ssh(lab: Lab, node: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command on a node as everybody would: the OpenSSH client, from the hub."""
    argv = lab.hub_argv(["ssh", "-F", str(lab.ssh_config), "-o", "BatchMode=yes", node, *command])
    return subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, check=False, stdin=subprocess.DEVNULL)


class Session:
    """An SSH session with `cat` at its far end."""

    def __init__(self, lab: Lab, node: str) -> None:
        argv = lab.hub_argv(["ssh", "-F", str(lab.ssh_config), "-o", "BatchMode=yes", node, "exec cat"])
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to: IO[str] = self.process.stdin
        self._back: IO[str] = self.process.stdout
        self.say("first")
        while (line := self._back.readline()) != "first\n":  # the banner of the login comes before
            assert line, "the session ended"

    def say(self, word: str) -> None:
        self._to.write(f"{word}\n")

    def hears(self) -> str:
        assert select.select([self._back], [], [], WAIT_S)[0], "nothing came back"
        return self._back.readline().strip()

    def is_silent(self) -> bool:
        return not select.select([self._back], [], [], 0)[0]

    def end(self) -> int:
        self.process.kill()
        with suppress(BrokenPipeError):  # what could not be said any more
            self._to.close()
        self._back.close()
        return self.process.wait()


@contextmanager
def session_with(lab: Lab, node: str) -> Iterator[Session]:
    session = Session(lab, node)
    try:
        yield session
    finally:
        session.end()


@contextmanager
def stream_to(lab: Lab, node: LabNode) -> Iterator[socket.socket]:
    """Gives a connection from the hub to an echo server on the node, over which something has gone already."""
    node.run(["python3", "-c", ECHO])
    with lab.inside():
        stream = socket.create_connection((node.address, ECHO_PORT), WAIT_S)
    with stream:
        stream.sendall(b"a")
        assert stream.recv(10) == b"a"
        yield stream


def retransmitted(stream: socket.socket) -> int:
    info = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    return int.from_bytes(info[TOTAL_RETRANS : TOTAL_RETRANS + 4], sys.byteorder)


def stalls(stream: socket.socket) -> None:
    """Waits until the kernel has sent again what was not acknowledged, and checks that nothing at all came back."""
    before = retransmitted(stream)
    wait_for(lambda: retransmitted(stream) >= before + RETRANSMISSIONS, "nothing was retransmitted")
    assert select.select([stream], [], [], 0)[0] == []
    assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def heard(node: LabNode) -> str:
    return node.run(["cat", "/tmp/heard"]).stdout


# ---------------------------------------------------------------- what a machine is


def test_ssh_reaches_both_machines_and_knows_them(lab: Lab) -> None:
    for name in ("mugen", "majin"):
        done = ssh(lab, name, "hostname; id -un; pwd; command -v tmux python3")
        assert done.returncode == 0, done.stderr
        banner, *said = done.stdout.splitlines()
        assert banner.startswith("Welcome"), "a login prints something nobody asked for"
        assert said == [name, "ubuntu", "/home/ubuntu", "/usr/bin/tmux", "/usr/bin/python3"]
        assert done.stderr == ""


def test_a_machine_with_another_host_key_is_refused(lab: Lab) -> None:
    lab.nodes["majin"].replace_host_key()
    done = ssh(lab, "majin", "true")
    assert done.returncode == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr
    assert ssh(lab, "mugen", "true").returncode == 0
    lab.nodes["majin"].restore_host_key()
    assert ssh(lab, "majin", "true").returncode == 0


def test_each_machine_sees_its_own_processes_only(lab: Lab) -> None:
    mugen, majin = lab.nodes.values()
    mugen.run(["sh", "-c", "exec >/dev/null 2>&1; sleep 4711 &"])
    wait_for(lambda: "sleep 4711" in mugen.processes().values(), "it does not run")
    assert "sleep 4711" not in majin.processes().values()
    assert mugen.run(["pgrep", "-c", "sleep"]).stdout == "1\n"
    assert majin.run(["pgrep", "-c", "sleep"], check=False).stdout == "0\n"
    assert mugen.run(["cat", "/proc/1/comm"]).stdout == "init\n"
    assert not set(mugen.processes()) & set(majin.processes())


def test_each_machine_has_its_own_files(lab: Lab, lab_folder: Path) -> None:
    mugen, majin = lab.nodes.values()
    for folder in ("/home/ubuntu", "/tmp", "/dev/shm", "/var/tmp"):
        mugen.run(["touch", f"{folder}/only-here"])
        assert not (majin.root / folder[1:] / "only-here").exists()
        assert not Path(folder, "only-here").exists()
    assert mugen.run(["test", "-e", str(lab_folder)], check=False).returncode == 1, "nothing of this machine but its programs"
    assert mugen.run(["touch", "/usr/mine"], user="root", check=False).returncode != 0


def test_an_orphan_is_reaped(lab: Lab) -> None:
    mugen = lab.nodes["mugen"]
    mugen.run(["sh", "-c", "(sleep 0 &)"])
    wait_for(lambda: mugen.run(["ps", "-A", "-o", "state="]).stdout.count("Z") == 0, "a zombie stayed")


def test_a_machine_takes_a_hundred_agents_with_three_processes_each(lab: Lab) -> None:
    lab.nodes["mugen"].run(["sh", "-c", "exec >/dev/null 2>&1; for i in $(seq 300); do sleep 4711 & done"])
    wait_for(lambda: list(lab.nodes["mugen"].processes().values()).count("sleep 4711") == 300, "not all of them run")


def test_a_program_that_takes_too_long_is_ended(lab: Lab) -> None:
    mugen = lab.nodes["mugen"]
    with pytest.raises(OrchestraError, match="sleep took longer"):
        mugen.run(["sleep", "4711"], timeout_s=0.1)
    wait_for(lambda: "sleep 4711" not in mugen.processes().values(), "it still runs")
    with pytest.raises(OrchestraError, match=r"ended with 3: no"):
        mugen.run(["sh", "-c", "echo no >&2; exit 3"])
    assert mugen.run(["cat"], input="yes").stdout == "yes"
    with pytest.raises(OrchestraError, match="no user"):
        mugen.run(["true"], user="somebody")


def test_the_hub_has_a_network_of_its_own(lab: Lab) -> None:
    def binds() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as each:
            try:
                each.bind((HUB_ADDRESS, 0))
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                return False
            return True

    assert not binds()
    with lab.inside():
        assert binds()
        child = subprocess.run(["readlink", "/proc/self/ns/net"], capture_output=True, text=True, check=True).stdout
    assert not binds()
    assert child == subprocess.run(lab.hub_argv(["readlink", "/proc/self/ns/net"]), capture_output=True, text=True, check=True).stdout
    assert child.strip() != os.readlink("/proc/self/ns/net")


def test_a_machine_joins_in_mid_run(lab: Lab) -> None:
    added = lab.add_node("third")
    assert ssh(lab, "third", "hostname").stdout.splitlines()[-1] == "third"
    assert ssh(lab, "mugen", "true").returncode == 0
    settings = yaml.safe_load(lab.settings_yaml(max_agents=7, extra="tasks:\n  retries: 3"))["orchestra"]
    assert settings["tasks"] == {"retries": 3}
    assert settings["nodes"]["third"] == {"host": "third", "ssh_user": "ubuntu", "max_agents": 7, "zone": "zone-3"}
    assert list(settings["nodes"]) == ["mugen", "majin", "third"]
    assert added.address == "10.77.0.13"
    for name in ("third", "Third", "-x", ""):
        with pytest.raises(OrchestraError):
            lab.add_node(name)


# ---------------------------------------------------------------- the network


def test_a_cut_is_silent_and_a_stream_goes_on_after_it(lab: Lab) -> None:
    mugen, majin = lab.nodes.values()
    with stream_to(lab, majin) as stream:
        majin.cut()
        stream.sendall(b"b")
        stalls(stream)
        assert heard(majin) == "a"
        assert ssh(lab, mugen.name, "true").returncode == 0, "the other machine is not cut off"
        majin.heal()
        assert stream.recv(10) == b"b"
    assert ssh(lab, majin.name, "true").returncode == 0


def test_one_way_only(lab: Lab) -> None:
    majin = lab.nodes["majin"]
    with stream_to(lab, majin) as stream:
        majin.cut("to_node")
        stream.sendall(b"b")
        stalls(stream)
        assert heard(majin) == "a", "it did not get there"
        majin.heal()
        assert stream.recv(10) == b"b"
        majin.cut("from_node")
        stream.sendall(b"c")
        stalls(stream)
        assert heard(majin) == "abc", "it got there, and the answer did not come back"
        majin.heal()
        assert stream.recv(10) == b"c"
    with pytest.raises(OrchestraError, match="no direction"):
        majin.cut("sideways")  # type: ignore[arg-type]


def test_loss_takes_some_packets_of_both_directions(lab: Lab) -> None:
    majin, sent = lab.nodes["majin"], 200
    majin.run(["python3", "-c", ECHO])
    with lab.inside():
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with udp:
        udp.settimeout(WAIT_S)
        udp.connect((majin.address, ECHO_PORT))
        majin.loss(50)
        for _ in range(sent):
            udp.send(b"x")
        back = 1
        while int(udp.recv(100).split()[0]) == back:  # until a number is missing: an answer was lost on its way
            back += 1
        majin.loss(0)
        udp.send(b"end")
        while not (said := udp.recv(100)).endswith(b"end"):
            pass
    assert back <= int(said.split()[0]) - 1 < sent, "some of what was sent was lost, too"


# ---------------------------------------------------------------- the SSH server


def test_a_session_outlives_the_listener(lab: Lab) -> None:
    majin = lab.nodes["majin"]
    with session_with(lab, "majin") as session:
        majin.stop_sshd()
        refused = ssh(lab, "majin", "true")
        assert refused.returncode == 255
        assert "Connection refused" in refused.stderr
        session.say("still here")
        assert session.hears() == "still here"
        majin.start_sshd()
        assert ssh(lab, "majin", "true").returncode == 0
        majin.restart_sshd()
        session.say("and now")
        assert session.hears() == "and now"


def test_a_stopped_session_says_nothing_and_goes_on_later(lab: Lab) -> None:
    majin = lab.nodes["majin"]

    def states() -> list[str]:
        lines = [(pid, line) for pid, line in majin.processes().items() if line.startswith("sshd") and "[listener]" not in line]
        return [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid, _ in lines]

    with session_with(lab, "majin") as session:
        majin.pause_sshd_sessions()
        wait_for(lambda: set(states()) == {"T"}, f"not stopped: {states()}")
        session.say("anybody?")
        assert ssh(lab, "majin", "true").returncode == 0, "a new login is served"
        assert session.is_silent()
        majin.resume_sshd_sessions()
        assert session.hears() == "anybody?"


# ---------------------------------------------------------------- power, disk, tmux


def test_a_reboot_forgets_what_a_machine_forgets(lab: Lab) -> None:
    majin = lab.nodes["majin"]

    def boot_id() -> str:
        return ssh(lab, "majin", "cat /proc/sys/kernel/random/boot_id").stdout.splitlines()[-1]

    majin.run(["sh", "-c", "touch ~/kept /tmp/lost /dev/shm/lost; exec >/dev/null 2>&1; setsid sleep 4711 &"])
    before, init, others = boot_id(), majin.init_pid, dict(lab.nodes["mugen"].processes())
    with session_with(lab, "majin") as session:
        majin.reboot()
        with suppress(BrokenPipeError):
            session.say("anybody?")
        assert session.process.wait(WAIT_S) == 255, "the machine does not know this connection any more"
    assert boot_id() != before
    assert majin.init_pid != init
    assert "sleep 4711" not in majin.processes().values()
    assert majin.run(["ls", "/home/ubuntu", "/tmp", "/dev/shm"]).stdout.split() == ["/dev/shm:", "/home/ubuntu:", "kept", "/tmp:"]
    assert dict(lab.nodes["mugen"].processes()) == others


def test_a_cut_outlasts_a_reboot(lab: Lab) -> None:
    majin = lab.nodes["majin"]
    with stream_to(lab, majin) as stream:
        majin.cut()
        majin.reboot()
        stream.sendall(b"b")
        stalls(stream)
        majin.heal()
        with pytest.raises(ConnectionResetError):
            stream.recv(10)


def test_a_full_disk_is_full_until_it_is_freed(lab: Lab) -> None:
    mugen, majin = lab.nodes.values()
    write = ["python3", "-c", "try: open('/home/ubuntu/x', 'wb').write(b'x' * 5000)\nexcept OSError as error: print(error.errno)"]
    majin.fill_disk()
    assert majin.run(write).stdout.strip() == str(errno.ENOSPC)
    assert mugen.run(write).stdout == ""
    majin.free_disk()
    assert majin.run(write).stdout == ""
    assert os.statvfs(majin.root / "home").f_frsize * os.statvfs(majin.root / "home").f_blocks == majin.home_bytes


def test_tmux_servers_die_at_once(lab: Lab) -> None:
    majin = lab.nodes["majin"]
    for name in ("one", "two"):
        assert ssh(lab, "majin", f"tmux -S /tmp/{name} -f /dev/null new-session -d").returncode == 0
    assert majin.kill_tmux() == 2
    assert majin.kill_tmux() == 0
    assert ssh(lab, "majin", "tmux -S /tmp/one list-sessions").returncode == 1


# ---------------------------------------------------------------- the end of a lab


def test_nothing_stays_whatever_was_started(lab_folder: Path) -> None:
    lab = Lab(lab_folder)
    with lab:
        lab.nodes["mugen"].run(["sh", "-c", "exec >/dev/null 2>&1; setsid sleep 4711 &"])
        hub = subprocess.Popen(lab.hub_argv(["sleep", "4711"]))
        stubborn = subprocess.Popen(lab.hub_argv(["sh", "-c", "trap '' TERM; echo; while :; do sleep 4711; done"]), stdout=subprocess.PIPE)
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == b"\n"
        lab.nodes["majin"].cut()
        inside = [pid for node in lab.nodes.values() for pid in node.processes()]
        assert lab.leftovers() != [], "it sees what is there"
    assert lab.leftovers() == []
    assert hub.wait(WAIT_S) == -signal.SIGTERM
    stubborn.stdout.close()
    assert stubborn.wait(WAIT_S) == -signal.SIGKILL
    assert [pid for pid in inside if processes.started_at(pid)] == []
    lab.close()
    with pytest.raises(OrchestraError, match="not open"):
        lab.hub_argv(["true"])


OWNER: Final = """
import json, os, subprocess, sys
from pathlib import Path
from orchestra.testing.lab import Lab
with Lab(Path(sys.argv[1])) as lab:
    lab.nodes["mugen"].run(["sh", "-c", "exec >/dev/null 2>&1; setsid sleep 4711 &"])
    hub = subprocess.Popen(lab.hub_argv(["sleep", "4711"]), stdout=subprocess.DEVNULL)
    keeper = int(lab.hub_argv([])[1].split("/")[2])
    pids = [keeper, hub.pid, *(pid for node in lab.nodes.values() for pid in node.processes())]
    print(json.dumps({"keeper": keeper, "pids": pids}), flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("victim", ["owner", "keeper"])
def test_nothing_stays_when_it_is_killed(lab_folder: Path, victim: str) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(lab_folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with ExitStack() as stack:
        stack.enter_context(owner)
        stack.callback(owner.kill)
        assert owner.stdout is not None
        facts = json.loads(owner.stdout.readline())
        handles = {pid: os.pidfd_open(pid) for pid in facts["pids"]}
        hub = os.open(f"/proc/{facts['keeper']}/ns/net", os.O_RDONLY)  # keeps its number from being given to another
        for each in (*handles.values(), hub):
            stack.callback(os.close, each)
        if victim == "keeper":
            handles.pop(facts["pids"][1])  # a process in the hub is the owner's; nobody is left to end it but the owner
            os.kill(facts["pids"][1], signal.SIGKILL)
        os.kill(owner.pid if victim == "owner" else facts["keeper"], signal.SIGKILL)
        for pid, handle in handles.items():
            assert select.select([handle], [], [], WAIT_S)[0], f"{pid} stayed: {processes.command_of(pid)}"
        owner.kill()
        owner.wait()
        assert processes.holders_of("net", os.fstat(hub).st_ino, but=frozenset({hub})) == []
        assert str(lab_folder) not in Path("/proc/self/mountinfo").read_text()


def test_a_lab_does_not_hold_on_to_mounts_of_others(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "other", str(other)], check=True)
    try:
        with Lab(tmp_path / "lab", ["mugen"]) as lab:
            keeper = lab.hub_argv([])[1].partition("=")[2].removesuffix("/ns/net")
            mounts = [Path(folder, "mountinfo").read_text() for folder in (keeper, f"/proc/{lab.nodes['mugen'].init_pid}")]
            assert all(mounts)
            assert [text for text in mounts if str(other) in text] == []
    finally:
        subprocess.run(["umount", str(other)], check=True)


def test_two_labs_do_not_meet(tmp_path: Path) -> None:
    with Lab(tmp_path / "one", ["mugen"]) as one, Lab(tmp_path / "two", ["mugen"]) as two:
        assert one.nodes["mugen"].address == two.nodes["mugen"].address
        one.nodes["mugen"].run(["touch", "only-here"])
        assert ssh(one, "mugen", "ls").stdout.splitlines()[-1] == "only-here"
        assert ssh(two, "mugen", "ls").stdout.splitlines()[1:] == []
        two.nodes["mugen"].cut()
        assert ssh(one, "mugen", "true").returncode == 0
    assert one.leftovers() == two.leftovers() == []


def test_what_is_missing_is_said(lab_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lab_module.TOOLS, "no-such-program", "no-such-package")
    with pytest.raises(OrchestraError, match=r"misses no-such-package .*apt-get install no-such-package"), Lab(lab_folder):
        pass
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(OrchestraError, match="needs root"), Lab(lab_folder):
        pass
    assert not lab_folder.exists()


# ---------------------------------------------------------------- the command


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "orchestra.testing.lab", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, check=False)


def test_a_lab_for_people(tmp_path: Path) -> None:
    folder = tmp_path / ("a-long-name" * 12)  # longer than the address of a socket
    argv = [sys.executable, "-m", "orchestra.testing.lab", "up", str(folder), "--nodes", "mugen", "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as up:
        try:
            assert up.stdout is not None
            facts = json.loads(up.stdout.readline())
            login = [*facts["hub"], "ssh", "-F", facts["ssh_config"], "mugen", "hostname"]
            assert subprocess.run(login, capture_output=True, text=True, check=True).stdout.splitlines()[-1] == "mugen"
            assert command(folder, "nodes").stdout == f"mugen 10.77.0.11 init {facts['nodes']['mugen']['init_pid']}\n"
            assert command(folder, "fill-disk", "mugen").returncode == 0
            assert subprocess.run([*login[:-1], "echo > x"], capture_output=True, text=True, check=False).returncode == 1
            assert command(folder, "kill-tmux", "mugen").stdout == "0\n"
            assert command(folder, "add", "majin").stdout.startswith("majin 10.77.0.12 ")
            assert command(folder, "reboot", "majin").returncode == 0
            assert "[listener]" in command(folder, "processes", "majin", "sshd").stdout
            wrong = command(folder, "cut", "third")
            assert (wrong.returncode, wrong.stderr) == (1, "error: there is no machine 'third'\nhint: known: mugen, majin\n")
            assert command(folder, "loss", "mugen", "some").returncode == 1
        finally:
            up.terminate()
            assert up.wait(WAIT_S) == 0
    gone = command(folder, "nodes")
    assert gone.returncode == 69
    assert "no lab is running" in gone.stderr
    assert processes.started_at(facts["nodes"]["mugen"]["init_pid"]) == 0


def test_the_command_explains_itself() -> None:
    said = command("--help")
    assert said.returncode == 0
    assert "restart-sshd" in said.stdout
    assert "up FOLDER" in said.stdout
    assert f"usage: {sys.executable} -m orchestra.testing.lab" in said.stdout, "as it can be typed, whatever `python` is"


def test_somebody_else_is_told_that_it_needs_root(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    os.seteuid(NOBODY)
    try:
        with pytest.raises(OrchestraError, match="takes orders from root only"):
            control.send(tmp_path / "lab", control.Order("nodes"))
    finally:
        os.seteuid(0)
