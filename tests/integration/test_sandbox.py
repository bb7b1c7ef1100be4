"""The sandbox, with a real worker, a real bwrap and agents that try to get out. What they must not reach is really there: without it they reach it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestra.bootstrap import load_settings
from orchestra.bootstrap.care import doctor
from orchestra.core.state import State
from orchestra.ids import TaskId
from orchestra.nodes.probe import PROBE_SCRIPT, sandbox_remedy
from orchestra.stage.sandbox_probe import SANDBOX_OPTIONS, problem_with
from orchestra.testing.hosted import hosted
from orchestra.views import HealthCheck
from tests.integration.stage_support import Pane, Stage, wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bwrap is a program of Linux")

NOBODY = 65534
USERS = pytest.mark.parametrize(
    "user", ["own", pytest.param("nobody", marks=pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user"))]
)
"""As root a sandbox is made with root's rights, which are then given up; for others, in a user namespace."""
ON: dict[str, Any] = {"mode": "on"}


@pytest.fixture
def ground() -> Iterator[Path]:
    """A folder that a sandbox does not hide anyway: outside of /tmp and of the home folder, wherever that is possible."""
    assert shutil.which("bwrap"), "bwrap is not installed; run: bash scripts/setup.sh --test"
    top = next(place for place in ("/srv", "/var/lib", str(Path.home())) if os.access(place, os.W_OK))
    folder = Path(tempfile.mkdtemp(dir=top, prefix="orchestra-test-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Desk(Stage):
    """A node's folder, with a home of its own beside it and somebody else's things all around."""

    def __init__(self, ground: Path) -> None:
        (ground / "node").mkdir()
        super().__init__(ground / "node")
        self.ground = ground
        self.home = ground / "home"
        for name in (
            ".ssh/id_ed25519",
            ".netrc",
            ".config/gh/hosts.yml",
            ".aws/credentials",
            ".bashrc",
            "project/readme",
            ".local/bin/tool",
        ):
            self.put(self.home / name)
        self.put(self.folder / "attempts/demo/other/1/work/secret")
        self.put(self.folder / "homes/8/claude/session")
        self.put(ground / "root/ledger/ledger.db")
        self.put(ground / "root/config/orchestra.yaml")
        self.put(ground / "worktrees/other/secret")
        self.user = ""

    @staticmethod
    def put(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("seen")
        return path

    @property
    def hide(self) -> list[str]:
        """As a coordinator on this machine would say."""
        return [str(self.ground / name) for name in ("root", "worktrees")]

    def work(self, spec: dict[str, Any]) -> Path:
        return self.attempt_folder(spec) / "work"

    def start(self, **more: str) -> Pane:
        """A worker with that home, as the user of the test."""
        env = {"HOME": str(self.home), "PATH": os.environ["PATH"], **more}
        if not self.user:
            return self.worker(env=env)
        self.give_away(self.ground)
        return self.as_nobody(env)

    def give_away(self, folder: Path) -> None:
        """What the test made becomes that user's."""
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)

    def place(self, spec: dict[str, Any], files: dict[str, str] | None = None) -> str:
        name = super().place(spec, files)
        if self.user:
            self.give_away(self.folder / "attempts")
        return name

    def as_nobody(self, env: dict[str, str]) -> Pane:
        from orchestra.nodes.tmux_node import stage_argv

        argv = [*("/usr/bin/setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")]
        argv += stage_argv("/usr/bin/python3", str(self.pushed), "worker", str(self.folder), "7")
        pane = Pane(argv, {"TERM": "xterm", **env, "PATH": "/usr/bin:/bin"})
        self.panes.append(pane)
        self.wait_record("ready")
        return pane


@pytest.fixture
def desk(ground: Path) -> Iterator[Desk]:
    desk = Desk(ground)
    try:
        yield desk
    finally:
        desk.close()


TRY = """
import json, os, socket, sys
asked = json.loads(sys.argv[1])
def readable(path):
    try:
        with open(path) as file: return file.read() == "seen"
    except OSError: return False
def writable(path):
    try:
        with open(path + "/made", "w") as file: file.write("seen")
    except OSError: return False
    return True
def answers(path):
    try:
        with socket.socket(socket.AF_UNIX) as client: client.connect(path)
    except OSError: return False
    return True
print(json.dumps({"read": [p for p in asked["read"] if readable(p)], "written": [p for p in asked["write"] if writable(p)],
    "sockets": [p for p in asked["sockets"] if answers(p)], "pids": sorted(int(p) for p in os.listdir("/proc") if p.isdigit())[:1]}))
"""


def attempted(desk: Desk, spec: dict[str, Any], source: str = "out") -> dict[str, Any]:
    desk.wait_record("done", spec)
    found: dict[str, Any] = json.loads(
        next(entry["line"] for entry in desk.output(spec) if entry["s"] == source and entry["line"][:1] == "{")
    )
    return found


@USERS
def test_an_agent_and_its_checks_reach_their_own_things_and_nobody_elses(desk: Desk, user: str) -> None:
    desk.user = user if user == "nobody" else ""
    spec_folder = desk.folder / "attempts/demo/one"
    keys = [desk.home / name for name in (".ssh/id_ed25519", ".netrc", ".config/gh/hosts.yml", ".aws/credentials", ".bashrc")]
    others = [desk.ground / name for name in ("root/ledger/ledger.db", "root/config/orchestra.yaml", "worktrees/other/secret")]
    others += [desk.folder / name for name in ("attempts/demo/other/1/work/secret", "homes/8/claude/session")]
    keys.append(desk.home / "project/readme")
    shown = [desk.home / ".local/bin/tool"]
    with tempfile.TemporaryDirectory(prefix="tmux-") as sockets, socket.socket(socket.AF_UNIX) as server:
        os.chmod(sockets, 0o755)
        server.bind(f"{sockets}/default")
        os.chmod(f"{sockets}/default", 0o777)
        server.listen()
        pane = desk.start(XDG_RUNTIME_DIR="/run/user/0")
        results = []
        for number, sandbox in enumerate(({"mode": "on", "hide": desk.hide}, {}), 1):
            own = [spec_folder / str(number) / "work", desk.folder / "homes/7", desk.home]
            foreign = [desk.folder / "agents/7", desk.folder, desk.home / "project", desk.home / ".ssh", desk.ground]
            asked = {
                "read": [str(path) for path in (*keys, *others, *shown)],
                "write": [*map(str, own), "/tmp", *map(str, foreign)],
                "sockets": [f"{sockets}/default"],
            }
            (desk.folder / "homes/7").mkdir(exist_ok=True)
            os.chown(desk.folder / "homes/7", *([NOBODY] * 2 if desk.user else [-1, -1]))
            argv = ["/usr/bin/python3", "-I", "-S", "-c", TRY, json.dumps(asked)]
            check = {"name": "again", "argv": argv, "timeout_ms": 20_000}
            spec = desk.order(argv, attempt=number, sandbox=sandbox, checks=[check])
            results += [attempted(desk, spec), attempted(desk, spec, "check:again")]
        Path("/tmp/made").unlink(missing_ok=True)
    inside, checked, outside, _ = results
    assert inside == checked, "checks run what the agent wrote"
    assert inside["read"] == [str(path) for path in shown]
    assert inside["written"] == [str(spec_folder / "1/work"), str(desk.folder / "homes/7"), str(desk.home), "/tmp"]
    assert inside["sockets"] == []
    assert inside["pids"] == [1]
    assert outside["read"] == [str(path) for path in (*keys, *others, *shown)], "it was all there to be read"
    assert outside["sockets"] == [f"{sockets}/default"]
    assert str(desk.ground) in outside["written"]
    assert pane.pull()


def test_what_the_order_adds_is_hidden_shown_or_writable(desk: Desk) -> None:
    for name in ("a", "b", "c"):
        desk.put(desk.ground / name / "file")
    desk.put(desk.home / ".tools/file")
    desk.start()
    asked = {"read": [f"{desk.ground}/{name}/file" for name in ("a", "b", "home/.tools")], "write": [f"{desk.ground}/c"], "sockets": []}
    sandbox = {"mode": "on", "hide": [f"{desk.ground}/a"], "readable": ["~/.tools"], "writable": [f"{desk.ground}/c"]}
    spec = desk.order(["/usr/bin/python3", "-I", "-S", "-c", TRY, json.dumps(asked)], sandbox=sandbox)
    found = attempted(desk, spec)
    assert (found["read"], found["written"]) == (asked["read"][1:], asked["write"])
    assert (desk.ground / "c/made").exists()


def test_a_shared_folder_is_written_and_what_the_users_git_would_run_is_not(desk: Desk) -> None:
    shared = desk.ground / "shared"
    desk.put(shared / "orchestra/ledger/ledger.db")
    subprocess.run(["git", "init", "-q", str(shared)], check=True)
    desk.start()
    script = (
        "echo new > file; echo evil > .git/hooks/pre-commit; git config alias.x '!evil'; git add file; cat orchestra/ledger/ledger.db; true"
    )
    spec = desk.order(["/bin/sh", "-c", script], cwd=str(shared), sandbox={"mode": "on", "hide": [f"{shared}/orchestra/ledger"]})
    assert desk.wait_record("done", spec)["exit"]["code"] == 0
    assert (shared / "file").read_text() == "new\n"
    assert not (shared / ".git/hooks/pre-commit").exists()
    assert "alias" not in (shared / ".git/config").read_text()
    assert subprocess.run(["git", "-C", str(shared), "ls-files"], capture_output=True, text=True, check=True).stdout == "file\n"
    assert "seen" not in [entry["line"] for entry in desk.output(spec)]


def test_it_has_a_home_and_temporary_files_that_go_with_the_attempt_and_its_checks_see_them(desk: Desk) -> None:
    desk.start()
    script = "echo kept > ~/.cache-of-it; echo kept > $TMPDIR/left; mkdir -m 0 /tmp/closed; ln -s / /tmp/link; seq 1000 | (cd /tmp && xargs touch)"
    check = {"name": "there", "argv": ["/bin/sh", "-c", 'grep -q kept ~/.cache-of-it && grep -q kept "$TMPDIR"/left'], "timeout_ms": 20_000}
    spec = desk.order(["/bin/sh", "-c", script], sandbox=ON, checks=[check])
    assert [each["passed"] for each in desk.wait_record("done", spec)["checks"]] == [True]
    assert not (desk.home / ".cache-of-it").exists()
    assert not Path("/tmp/left").exists()
    assert sorted(path.name for path in desk.attempt_folder(spec).iterdir()) == ["claim", "exit.json", "reports", "spec.json", "work"]


def test_what_it_returns_is_written_from_inside(desk: Desk) -> None:
    desk.start()
    spec = desk.order(["/bin/sh", "-c", 'echo "{}" > "$ORCHESTRA_RETURN"'], sandbox=ON, returns="plan")
    done = desk.wait_record("done", spec)
    assert (done["exit"]["code"], done["returned"]) == (0, {"text": "{}\n"})


def test_what_checks_count_is_written_from_inside_and_what_the_agent_left_there_is_not_counted(desk: Desk) -> None:
    desk.start()
    script = 'ls "$ORCHESTRA_ATTEMPT_DIR/reports"; echo forged > "$ORCHESTRA_ATTEMPT_DIR/reports/junit.xml"'
    counts = 'cd "$ORCHESTRA_ATTEMPT_DIR/reports" && ls && echo counted > figures'
    check = {"name": "counts", "argv": ["/bin/sh", "-c", counts], "timeout_ms": 20_000}
    spec = desk.order(["/bin/sh", "-c", script], sandbox=ON, checks=[check])
    done = desk.wait_record("done", spec)
    assert (done["exit"]["code"], [(each["passed"], each["tail"]) for each in done["checks"]]) == (0, [(True, [])])
    assert [each.name for each in (desk.attempt_folder(spec) / "reports").iterdir()] == ["figures"]


def test_files_of_its_kind_are_kept_and_an_end_cannot_be_forged(desk: Desk) -> None:
    desk.start()
    script = 'cd "$ORCHESTRA_ATTEMPT_DIR"; cat scenario.json; echo {} > trajectory.json; echo x > scenario.json; echo "{}" > exit.json; ls spec.json; exit 3'
    spec = desk.order(["/bin/sh", "-c", script], sandbox=ON, files={"scenario.json": "the scenario"})
    desk.wait_record("done", spec)
    folder = desk.attempt_folder(spec)
    assert "the scenario" in [entry["line"] for entry in desk.output(spec)]
    assert (folder / "trajectory.json").read_text() == "{}\n"
    assert (folder / "scenario.json").read_text() == "the scenario"
    assert json.loads((folder / "exit.json").read_text())["exit"]["code"] == 3
    assert any("spec.json" in entry["line"] and entry["s"] == "err" for entry in desk.output(spec))


# --- ends: as without a sandbox


@pytest.mark.parametrize(
    "script,code,number",
    [("exit 0", 0, None), ("exit 3", 3, None), ("exit 255", 255, None), ("kill -KILL $$", None, 9), ("kill -TERM $$", None, 15)],
)
def test_exit_codes_and_signals_are_told_as_without(desk: Desk, script: str, code: int | None, number: int | None) -> None:
    desk.start()
    told = []
    for attempt, sandbox in enumerate((ON, {}), 1):
        done = desk.wait_record("done", desk.order(["/bin/sh", "-c", script], attempt=attempt, sandbox=sandbox))["exit"]
        told.append((done["code"], done["signal"], done["reason"]))
    assert told == [(code, number, "exit")] * 2


def test_a_program_that_is_not_there_or_not_to_be_seen_could_not_be_started(desk: Desk) -> None:
    desk.start()
    done = desk.wait_record("done", desk.order(["no-such-program"], sandbox=ON))["exit"]
    assert (done["reason"], done["code"]) == ("spawn", None)
    assert "not found in PATH" in done["tail"][-1]
    tool = desk.put(desk.home / ".private/tool")
    tool.chmod(0o755)
    hidden = desk.order([str(tool)], attempt=2, sandbox={"mode": "on", "hide": [str(tool.parent)]})
    done = desk.wait_record("done", hidden)["exit"]
    assert done["reason"] == "spawn"
    assert "bwrap: execvp" in done["tail"][-1]


DRIVE = "import os, sys; os.execvp(sys.argv[2], sys.argv[2:])"


@pytest.mark.parametrize("driven", [(), (sys.executable, "-I", "-S", "-c", DRIVE, "module")], ids=["alone", "by a program of the stage"])
def test_a_program_is_seen_wherever_links_lead_to_it(desk: Desk, driven: tuple[str, ...]) -> None:
    tool = desk.home / "project/third/tool"
    desk.put(tool).write_text("#!/bin/sh\necho ran\n")
    tool.chmod(0o755)
    for place, target in (("second", "../third/tool"), ("first", str(desk.home / "project/second/tool"))):
        (desk.home / "project" / place).mkdir()
        (desk.home / "project" / place / "tool").symlink_to(target)
    path = f"{desk.home}/project/first:{os.environ['PATH']}"
    desk.start(PATH=path)
    spec = desk.order([*driven, "tool"], env={"PATH": path}, sandbox=ON)
    assert desk.wait_record("done", spec)["exit"]["code"] == 0, desk.output(spec)
    assert [entry["line"] for entry in desk.output(spec) if entry["s"] == "out"] == ["ran"]


def test_a_program_that_has_another_command_line_for_the_sandbox_runs_by_that_there_alone(desk: Desk) -> None:
    desk.start()
    inside = desk.order(["/bin/echo", "outside"], sandbox={**ON, "argv": ["/bin/echo", "inside"]})
    desk.wait_record("done", inside)
    assert [entry["line"] for entry in desk.output(inside)] == ["inside"]
    off = desk.order(["/bin/echo", "outside"], attempt=2)
    desk.wait_record("done", off)
    assert [entry["line"] for entry in desk.output(off)] == ["outside"]


def test_a_link_that_the_agent_can_change_shows_nothing(desk: Desk) -> None:
    tool = desk.put(desk.home / "project/tool")
    tool.write_text("#!/bin/sh\necho ran\n")
    tool.chmod(0o755)
    for place, target in ((desk.ground / "open", tool), (desk.ground / "first", desk.ground / "open/tool")):
        place.mkdir()
        (place / "tool").symlink_to(target)
    path = f"{desk.ground}/first:{os.environ['PATH']}"
    desk.start(PATH=path)
    spec = desk.order(["tool"], env={"PATH": path}, sandbox={"mode": "on", "writable": [f"{desk.ground}/open"]})
    assert desk.wait_record("done", spec)["exit"]["reason"] == "spawn"


FAMILY = """
import os, signal, sys
def child(what):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            held = os.open("fifo", os.O_WRONLY)
            os.set_inheritable(held, True)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.write(held, b"up")
            os.execve("/bin/sh", ["sh", "-c", "while :; do sleep 1000; done"], {}) if what else signal.pause()
        os._exit(0)
    os.wait()
child(True); child(False)
"""
"""Two daemons in sessions of their own, deaf to TERM, one of them without our environment. They hold a pipe open for as long as they live."""


def family(desk: Desk, after: str, **more: Any) -> tuple[dict[str, Any], int]:
    """Orders it; returns the order and the pipe's other end, once both daemons are there."""
    spec = desk.spec(
        [sys.executable, "-I", "-S", "-c", FAMILY + after],
        sandbox=ON,
        **more,
    )
    place = desk.place(spec)
    desk.work(spec).mkdir()
    os.mkfifo(desk.work(spec) / "fifo")
    pipe = os.open(desk.work(spec) / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    desk.poke({"op": "run", "dir": place})
    seen = bytearray()

    def both() -> bool:
        try:
            seen.extend(os.read(pipe, 100))
        except BlockingIOError:
            return False
        return seen == b"upup"

    wait_until(both, "both daemons", on=None)
    return spec, pipe


def all_gone(pipe: int) -> bool:
    """Whether nobody holds the pipe open any more."""
    try:
        return os.read(pipe, 100) == b""
    except BlockingIOError:
        return False


def test_daemons_do_not_survive_the_attempt(desk: Desk) -> None:
    desk.start()
    spec, pipe = family(desk, "")
    done = desk.wait_record("done", spec)["exit"]
    assert (done["code"], done["reason"]) == (0, "exit")
    assert all_gone(pipe), "when the attempt is over, all of it is"
    os.close(pipe)


def test_daemons_do_not_survive_the_worker(desk: Desk) -> None:
    pane = desk.start()
    _, pipe = family(desk, "\nsignal.pause()")
    pane.kill()
    wait_until(lambda: all_gone(pipe), "the end of all")
    os.close(pipe)


def test_a_stop_leaves_the_grace_and_ends_what_does_not_heed_it(desk: Desk) -> None:
    desk.start()
    heeds = "trap 'echo cleaned > cleaned; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    spec = desk.order(["/bin/sh", "-c", heeds], sandbox=ON, grace_ms=15_000)
    desk.wait_output(spec, "ready")
    desk.poke({"op": "stop", "task": spec["task"], "attempt": 1, "grace_ms": 15_000})
    done = desk.wait_record("done", spec)["exit"]
    assert (done["reason"], done["code"]) == ("stopped", 7)
    assert (desk.work(spec) / "cleaned").exists()

    spec = desk.order(
        ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"], attempt=2, sandbox=ON, timeout_ms=300, grace_ms=100
    )
    done = desk.wait_record("done", spec)["exit"]
    assert (done["reason"], done["signal"]) == ("timeout", 9)


def test_ctrl_c_in_the_window_reaches_the_agent(desk: Desk) -> None:
    pane = desk.start()
    spec = desk.order(["/bin/sh", "-c", "trap 'echo interrupted; exit 4' INT; echo ready; while :; do sleep 0.05; done"], sandbox=ON)
    desk.wait_output(spec, "ready")
    pane.type(b"\x03")
    assert desk.wait_record("done", spec)["exit"]["code"] == 4
    assert desk.output(spec)[-1]["line"] == "interrupted"


def test_limits_and_measurements_hold_inside(desk: Desk) -> None:
    desk.start()
    script = (
        "import resource, os\nx = bytearray(80 << 20)\nprint(resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.nice(0), oct(os.umask(0)))"
    )
    spec = desk.order([sys.executable, "-I", "-S", "-c", script], sandbox=ON, limits={"open_files": 99, "nice": 3}, umask=0o027)
    done = desk.wait_record("done", spec)["exit"]
    assert desk.output(spec)[0]["line"] == "99 3 0o27"
    assert done["rss_bytes_max"] > 80 << 20
    assert done["cpu_ms"] > 0
    many = "import os\nfor _ in range(9):\n    if os.fork() == 0: import signal; signal.pause()\nimport signal; signal.pause()"
    spec = desk.order([sys.executable, "-I", "-S", "-c", many], attempt=2, sandbox=ON, limits={"memory_bytes": 60 << 20, "processes": 40})
    big = desk.order(
        [sys.executable, "-I", "-S", "-c", "x = bytearray(300 << 20); input()"], attempt=3, sandbox=ON, limits={"memory_bytes": 60 << 20}
    )
    desk.poke({"op": "stop", "task": spec["task"], "attempt": 2, "grace_ms": 0})
    assert desk.wait_record("done", spec)["exit"]["reason"] == "stopped"
    assert desk.wait_record("done", big)["exit"]["reason"] == "memory"


# --- where there is none


def test_without_bwrap_an_attempt_says_so_or_is_refused(desk: Desk) -> None:
    pane = desk.start(PATH="/nonexistent")
    lenient = desk.order(["/bin/sh", "-c", "echo ran"], sandbox={"mode": "auto"})
    desk.wait_record("done", lenient)
    assert desk.output(lenient)[0]["line"] == "ran"
    pane.wait_text("not in a sandbox: bwrap is not installed")
    strict = desk.order(["/bin/sh", "-c", "echo ran"], attempt=2, sandbox=ON)
    done = desk.wait_record("done", strict)["exit"]
    assert done["reason"] == "spawn"
    assert "sandbox.mode is 'on': bwrap is not installed" in done["tail"][-1]


def test_a_bwrap_that_may_not_make_namespaces_is_found_out(ground: Path) -> None:
    look = [sys.executable, "-c", "import sys; from orchestra.stage.sandbox_probe import problem_with; print(problem_with(sys.argv[1]))"]
    bwrap = shutil.which("bwrap") or ""
    assert problem_with(bwrap) == ""
    forbidden = [
        bwrap,
        "--unshare-user",
        "--disable-userns",
        "--cap-drop",
        "ALL",
        "--ro-bind",
        "/",
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
    ]
    said = subprocess.run([*forbidden, "--", *look, bwrap], capture_output=True, text=True, check=True).stdout
    assert "namespace" in said


def test_doctor_says_whether_there_is_one_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> HealthCheck:
        return next(check for check in doctor(tmp_path, load_settings(tmp_path, {})) if check.name == "sandbox")

    assert told().ok
    monkeypatch.setenv("PATH", "/nonexistent")
    without = told()
    assert (without.ok, without.detail) == (False, "bwrap is not installed")
    assert "apt-get install bubblewrap" in without.remedy
    assert "user namespaces" in sandbox_remedy("No permissions to create new namespace")


def test_the_look_at_a_node_tries_the_same_sandbox() -> None:
    assert all(f'"{word}"' in PROBE_SCRIPT for word in SANDBOX_OPTIONS)


# --- repositories


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=u", "-c", "user.email=u@x"]
    return subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repo(ground: Path) -> Path:
    folder = ground / "repo"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "f").write_text("base\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "base")
    git(folder, "branch", "orchestra/p/merged")
    git(folder, "worktree", "add", "-q", "-b", "orchestra/p/one.1", str(folder.parent / "worktrees/one"))
    git(folder, "worktree", "add", "-q", "-b", "orchestra/p/two.1", str(folder.parent / "worktrees/two"))
    return folder


IDENTITY = {f"GIT_{who}_{what}": "agent@x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def test_an_agent_commits_in_its_worktree_and_changes_nothing_else_of_the_repository(desk: Desk, repo: Path) -> None:
    desk.start()
    worktree = repo.parent / "worktrees/one"
    before = git(repo, "for-each-ref", "--format=%(refname) %(objectname)")
    script = """
        git status --short; echo mine > mine; git add mine; git commit -qm 'of the agent'; git log --oneline | wc -l; git status --short
        echo staged > staged; git add staged
        C=$(git rev-parse --git-common-dir)
        git update-ref refs/heads/main HEAD; git update-ref refs/heads/orchestra/p/merged HEAD; git branch evil; git tag evil
        git update-ref -d refs/heads/orchestra/p/two.1
        echo evil > $C/hooks/post-commit; git config core.fsmonitor evil; rm -rf $C/objects/?? $C/worktrees/two; echo x > .git; ls ../two
        exit 0
    """
    sandbox = {"mode": "on", "hide": [str(repo.parent / "worktrees")], "worktree": str(worktree)}
    spec = desk.order(["/bin/sh", "-c", script], cwd=str(worktree), env=IDENTITY, sandbox=sandbox)
    assert desk.wait_record("done", spec)["exit"]["code"] == 0
    assert [entry["line"] for entry in desk.output(spec) if entry["s"] == "out"] == ["2"]
    after = git(repo, "for-each-ref", "--format=%(refname) %(objectname)")
    assert set(before.splitlines()) - set(after.splitlines()) == set(), "the objects it committed were thrown away by itself: nothing moved"
    git(repo, "worktree", "remove", "--force", str(worktree))
    assert git(repo, "fsck", "--strict", "--no-dangling") == ""
    assert not (repo / ".git/hooks/post-commit").exists()
    assert git(repo.parent / "worktrees/two", "status", "--short") == ""


def test_commits_of_the_agent_and_of_a_check_come_into_the_repository(desk: Desk, repo: Path) -> None:
    pane = desk.start()
    worktree = repo.parent / "worktrees/one"
    script = "echo 1 > a; git add a; git commit -qm first; echo 2 > b; git add b; git commit -qm second; echo s > staged; git add staged"
    check = {
        "name": "c",
        "argv": ["/bin/sh", "-c", "git log --format=%s | head -1 | grep -q second && git diff --cached --quiet; test $? = 1"],
        "timeout_ms": 20_000,
    }
    sandbox = {"mode": "on", "hide": [str(repo.parent / "worktrees")], "worktree": str(worktree)}
    spec = desk.order(["/bin/sh", "-c", script], cwd=str(worktree), env=IDENTITY, sandbox=sandbox, checks=[check])
    done = desk.wait_record("done", spec)
    assert [each["passed"] for each in done["checks"]] == [True], desk.output(spec)
    assert git(repo, "log", "--format=%s", "orchestra/p/one.1") == "second\nfirst\nbase", pane.pull()
    assert git(worktree, "status", "--short") == "A  staged"
    assert git(worktree, "show", ":staged") == "s"
    assert git(repo, "log", "--format=%s", "main") == "base"
    assert git(repo, "fsck", "--strict", "--no-dangling") == ""


def test_other_branches_go_and_refs_are_packed_while_the_agent_works_and_its_checks_still_run(desk: Desk, repo: Path) -> None:
    """With the last other branch of a plan git removes the folder of its log, and packing that of the branch itself."""
    desk.start()
    worktree = repo.parent / "worktrees/one"
    (repo / ".git/logs/refs/heads/orchestra/p/one.1").unlink()  # as where none are kept
    script = "touch begun; until test -e go; do sleep 0.02; done; rm begun go; echo 1 > a; git add a; git commit -qm first"
    check = {"name": "c", "argv": ["/bin/sh", "-c", "git log --format=%s | grep -q first"], "timeout_ms": 20_000}
    sandbox = {"mode": "on", "hide": [str(repo.parent / "worktrees")], "worktree": str(worktree)}
    spec = desk.order(["/bin/sh", "-c", script], cwd=str(worktree), env=IDENTITY, sandbox=sandbox, checks=[check])
    wait_until((worktree / "begun").exists, "the agent")
    git(repo, "worktree", "remove", "--force", str(repo.parent / "worktrees/two"))
    git(repo, "branch", "-D", "orchestra/p/two.1", "orchestra/p/merged")
    git(repo, "pack-refs", "--all", "--prune")
    (worktree / "go").touch()
    done = desk.wait_record("done", spec)
    assert [each["passed"] for each in done["checks"]] == [True], desk.output(spec)
    assert git(repo, "log", "--format=%s", "orchestra/p/one.1") == "first\nbase"
    assert [path.name for path in (repo / ".git/refs/heads/orchestra/p").iterdir()] == ["one.1"]
    assert git(repo, "fsck", "--strict", "--no-dangling") == ""


async def test_a_whole_orchestra_works_and_merges_in_sandboxes(ground: Path) -> None:
    repo = ground / "project"
    repo.mkdir()
    git(repo, "init", "-q", "-b", "main")
    (repo / "f").write_text("base\n")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "base")
    plan = f"""\
name: p
defaults: {{isolation: worktree, sandbox: on, retries: 0, env: {json.dumps(IDENTITY)}}}
tasks:
  - id: a
    run: |
      ls {repo}/.codex/ledger {repo}/.codex/nodes/local/journal && exit 9
      echo by hand > a.txt; git add a.txt; git commit -qm 'by the agent'; echo left > left.txt
    success_criteria: [{{run: "grep -q hand a.txt && ! ls {repo}/.codex/ledger/ledger.db"}}]
  - {{id: b, needs: [a], run: "cat a.txt left.txt > b.txt"}}
"""
    async with hosted(repo / ".codex", agents=2) as stage:
        assert await stage.wait_plan(await stage.submit(plan, repo)) == "completed", _reasons(stage.coordinator.loop.state)
        assert len(stage.coordinator.loop.state.tasks[TaskId("p/a")].attempts) == 1
    assert git(repo, "show", "orchestra/p/merged:b.txt") == "by hand\nleft"
    assert "by the agent" in git(repo, "log", "--format=%s", "orchestra/p/merged")
    assert git(repo, "status", "--short", "--untracked-files=no") == ""


def _reasons(state: State) -> list[str]:
    return [attempt.outcome.reason for task in state.tasks.values() for attempt in task.attempts if attempt.outcome is not None]


def test_a_repository_cannot_be_read_through_what_an_agent_leaves_for_git(desk: Desk, repo: Path) -> None:
    secret = repo.parent / "home/private"
    secret.mkdir()
    git(secret, "init", "-q")
    desk.put(secret / "secret")
    git(secret, "add", ".")
    git(secret, "commit", "-qm", "secret")
    loose, packed = git(secret, "rev-parse", "HEAD:secret"), git(secret, "rev-parse", "HEAD")
    desk.start()
    worktree = repo.parent / "worktrees/one"
    objects = f"{secret}/.git/objects"
    script = f"""
        echo 1 > a; git add a; git commit -qm first
        O=$(git rev-parse --git-common-dir)/objects
        echo {objects} > $O/info/alternates; ln -s {objects}/{loose[:2]} $O/{loose[:2]}; rm -r $O/pack; ln -s {objects}/pack $O/pack
    """
    sandbox = {"mode": "on", "hide": [str(repo.parent / "worktrees")], "worktree": str(worktree)}
    git(secret, "repack", "-q")
    spec = desk.order(["/bin/sh", "-c", script], cwd=str(worktree), env=IDENTITY, sandbox=sandbox)
    desk.wait_record("done", spec)
    assert git(repo, "log", "--format=%s", "orchestra/p/one.1") == "first\nbase"
    known = git(repo, "cat-file", "--batch-all-objects", "--batch-check=%(objectname)").split()
    assert loose not in known
    assert packed not in known


def test_a_program_that_an_agent_plants_is_not_run_outside(desk: Desk, repo: Path) -> None:
    """Where PATH leads into the folder that it works in, what ends its sandbox takes other programs than those."""
    worktree = repo.parent / "worktrees/one"
    planted = worktree / "bin"
    planted.mkdir()
    for name in ("git", "bwrap", "rm", "sh"):
        (planted / name).write_text(f"#!/bin/sh\ntouch {repo.parent}/planted-{name}\n")
        (planted / name).chmod(0o755)
    path = f"{planted}:{os.environ['PATH']}"
    desk.start(PATH=path)
    script = "PATH=/usr/bin:/bin; echo 1 > a; git add a; git commit -qm first; seq 1000 | (cd /tmp && xargs touch)"
    sandbox = {"mode": "on", "worktree": str(worktree)}
    spec = desk.order(["/bin/sh", "-c", script], cwd=str(worktree), env={**IDENTITY, "PATH": path}, sandbox=sandbox)
    assert desk.wait_record("done", spec)["exit"]["code"] == 0
    assert git(repo, "log", "--format=%s", "orchestra/p/one.1") == "first\nbase"
    assert list(repo.parent.glob("planted-*")) == []


async def test_checks_of_a_merge_run_in_a_sandbox_too(ground: Path) -> None:
    """They run what an agent wrote. The first two are verified apart and brought together by a merge; only in that do both files exist."""
    root, repo, gate = ground / "root", ground / "repo", ground / "gate"
    repo.mkdir()
    git(repo, "init", "-q", "-b", "main")
    git(repo, "commit", "-q", "--allow-empty", "-m", "base")
    check = f"if test -e p.a && test -e p.b; then test ! -e {root}/ledger/ledger.db; fi"
    tasks = "".join(
        f"  - {{id: {name}, run: 'until [ -e {gate} ]; do sleep 0.02; done; touch p.{name}', retries: 0, success_criteria: [{{run: '{check}'}}]}}\n"
        for name in ("a", "b")
    )
    settings = {"sandbox.mode": "on", "sandbox.readable": str(gate)}
    async with hosted(root, agents=2, flags=settings) as stage:
        plan = await stage.submit(f"name: p\ndefaults: {{isolation: worktree}}\ntasks:\n{tasks}", repo)
        await stage.wait(lambda state: True if sum(a.started_ms > 0 for _, a in state.live_attempts()) == 2 else None)
        gate.touch()
        assert await stage.wait_plan(plan) == "completed"
        assert [len(task.attempts) for task in stage.coordinator.loop.state.tasks.values()] == [1, 1]
    assert (root / "ledger" / "ledger.db").exists()
