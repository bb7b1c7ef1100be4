"""What an attempt costs over running the coding agent's program by hand: wall time and CPU, for a run with three seconds of model time.

The real Claude Code and Codex (`scripts/setup_agents.sh`) and a fake model server, in a network namespace that has only loopback; needs root. Each answer takes
three seconds to arrive. By hand: the program in an empty folder, as a person starts it. Ours: a task in a worktree, in a sandbox where there is one, through the
gateway, from the assignment to the end of the attempt, and to the assignment of the task that needs its result, which is merged then; the orchestra's own CPU (coordinator, gateway, courier, worker, tmux) is divided
among the attempts.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from support import arguments, cpu_seconds, median, scratch, show, wait_quiet

from orchestra.ids import TaskId
from orchestra.testing.hosted import hosted, wait_until

PROGRAMS = Path(__file__).resolve().parent.parent / ".cache" / "agents" / "bin"
PORT = 4747
URL = f"http://127.0.0.1:{PORT}"
MODEL_S = 3.0
CHUNKS = 30
WALL_BAR_S = 0.3
CPU_BAR_SHARE = 0.15
INSIDE = "ORCHESTRA_BENCH_INSIDE"
ANSWER = "done " * CHUNKS
COMMANDS = {
    "claude": ("claude", "-p", "--output-format", "stream-json", "--verbose", "--permission-mode", "bypassPermissions"),
    "codex": ("codex", "exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
}
CODEX = f"""\
model_provider = "fake"
check_for_update_on_startup = false
[features]
plugins = false
daemon_auto_start = false
[analytics]
enabled = false
[model_providers.fake]
name = "fake"
base_url = "{URL}/v1"
wire_api = "responses"
env_key = "OPENAI_API_KEY"
"""


@contextmanager
def model(folder: Path) -> Iterator[None]:
    """The fake model server."""
    fixtures = folder / "fixtures.json"
    pace = {"latency": round(MODEL_S * 1000 / CHUNKS), "chunkSize": len(ANSWER) // CHUNKS}
    fixtures.write_text(json.dumps({"fixtures": [{"match": {"userMessage": "SAY"}, "response": {"content": ANSWER}, **pace}]}))
    server = subprocess.Popen(
        ["node", str(PROGRAMS / "aimock"), "--port", str(PORT), "--fixtures", str(fixtures)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        for line in server.stdout:
            if "listening on" in line:
                break
        yield
    finally:
        server.kill()
        server.wait()


def by_hand(kind: str, folder: Path, count: int) -> tuple[list[float], list[float]]:
    """Seconds of wall time and of CPU, for each run."""
    home, work = folder / f"home-{kind}", folder / f"work-{kind}"
    (home / ".codex").mkdir(parents=True)
    work.mkdir()
    (home / ".codex" / "config.toml").write_text(CODEX)
    quiet = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1", "IS_SANDBOX": "1", "ANTHROPIC_BASE_URL": URL}
    env = {**{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}, "HOME": str(home), **quiet, **keys()}
    walls, used = [], []
    for _ in range(count):
        began = time.perf_counter()
        process = subprocess.Popen([*COMMANDS[kind], "SAY it"], cwd=work, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        walls.append(time.perf_counter() - began)
        used.append(usage.ru_utime + usage.ru_stime)
        assert process.returncode == 0, f"{kind} by hand ended with {process.returncode}"
    return walls, used


def keys() -> dict[str, str]:
    return {"ANTHROPIC_API_KEY": "dummy-key", "OPENAI_API_KEY": "dummy-key"}


def own_processes(root: Path, key: str) -> list[int]:
    """The orchestra's own: this one, and those that name its root or its tmux socket; agents' programs name neither."""
    found = [os.getpid()]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if ("orchestra_stage" in line and str(root) in line) or "gateway\0run" in line or (key in line and line.startswith("tmux")):
                found.append(int(entry.name))
    return found


async def ours(kind: str, folder: Path, count: int) -> tuple[list[float], list[float], list[float], float]:
    """Seconds of wall time to the end, to the next one's start, and of the program's CPU for each attempt; the orchestra's own CPU an attempt."""
    repo = folder / f"repo-{kind}"
    repo.mkdir()
    for words in (["init", "-q"], ["-c", "user.name=u", "-c", "user.email=u@x", "commit", "-q", "--allow-empty", "-m", "base"]):
        await (await asyncio.create_subprocess_exec("git", *words, cwd=repo)).wait()
    root = repo / ".codex"
    flags = {"kinds.claude.base_url": URL, "kinds.claude.allow_root": "true", "kinds.codex.base_url": f"{URL}/v1"}
    tasks = [
        {"id": f"t{number}", "agent": kind, "prompt": "SAY it", "needs": [f"t{number - 1}"] if number else []}
        for number in range(count + 2)
    ]
    async with hosted(root, agents=1, flags=flags) as stage:
        plan = await stage.submit(json.dumps({"name": "p", "tasks": tasks}), repo)
        await stage.wait_status("p/t0", "completed")  # the first brings up the gateway
        before = {pid: cpu_seconds(pid) for pid in own_processes(root, stage.root.key)}
        assert await stage.wait_plan(plan) == "completed"
        after = {pid: cpu_seconds(pid) for pid in before}
        tasks_done = stage.coordinator.loop.state.tasks
        found = [tasks_done[TaskId(f"p/t{number}")].attempts[0] for number in range(1, count + 2)]
        await wait_until(lambda: not stage.coordinator.loop.state.merging)
    walls = [(attempt.ended_ms - attempt.assigned_ms) / 1000 for attempt in found]
    whole = [(following.assigned_ms - attempt.assigned_ms) / 1000 for attempt, following in pairwise(found)]
    used = [attempt.outcome.cpu_ms / 1000 for attempt in found if attempt.outcome is not None]
    return walls, whole, used, (sum(after.values()) - sum(before.values())) / len(found)


def measure(quick: bool) -> None:
    """Inside of the namespace."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.environ["PATH"] = f"{PROGRAMS}:{os.environ['PATH']}"
    count = 3 if quick else 8
    busy = wait_quiet()
    figures: dict[str, Any] = {}
    met = True
    with scratch() as folder, model(folder):
        os.environ.update(keys(), HOME=str(folder))
        for kind in COMMANDS:
            hand_wall, hand_cpu = (median(each) for each in by_hand(kind, folder, count))
            walls, whole, used, own = asyncio.run(ours(kind, folder, count))
            wall, cpu = median(walls) - hand_wall, median(used) + own - hand_cpu
            met = met and wall <= WALL_BAR_S and wall <= CPU_BAR_SHARE * hand_wall and cpu <= CPU_BAR_SHARE * hand_wall
            figures[kind] = {
                "by_hand_wall": hand_wall,
                "wall_added": wall,
                "wall_share": wall / hand_wall,
                "wall_added_until_merged": median(whole) - hand_wall,
                "by_hand_cpu": hand_cpu,
                "cpu_added": cpu,
                "cpu_added_own": own,
                "cpu_share_of_run": cpu / hand_wall,
            }
    command = f"{Path(sys.executable).name} benchmarks/bench_agents.py"
    bar = f"adds <= {WALL_BAR_S} s of wall time, and <= {CPU_BAR_SHARE:.0%} of the run in wall time and CPU"
    show("agents", "s", bar, met, {"ours": command}, runs=count, model_seconds=MODEL_S, busy_before=busy, **figures)


def main() -> None:
    options = arguments(__doc__ or "")
    if os.environ.get(INSIDE):
        measure(options.quick)
        return
    missing = [name for name in (*COMMANDS, "aimock") if not (PROGRAMS / name).exists()]
    if missing or os.geteuid() != 0:
        why = f"{', '.join(missing)} not installed: bash scripts/setup_agents.sh" if missing else "it needs root for a network namespace"
        show("agents", "s", "", None, {}, why=why)
        return
    os.execvpe("unshare", ["unshare", "--net", sys.executable, *sys.argv], {**os.environ, INSIDE: "1"})


if __name__ == "__main__":
    main()
