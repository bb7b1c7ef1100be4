"""Claude Code and Codex as they are, on machines reached by SSH: in tmux windows there, in worktrees that were sent there, with a token and never a key. The
model is scripted; whoever asks it comes by the gateway of the control machine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from orchestra.core.model import TASK_TERMINAL, NodeStatus, OutcomeKind, TaskStatus
from orchestra.core.state import State
from orchestra.gateway.admin import ask_admin
from orchestra.ids import NodeId, PlanId, TaskId
from orchestra.intake.request import AnswerParams, CancelParams
from orchestra.testing.hosted import check_books, end_processes, processes_left, wait_until
from orchestra.testing.lab import Lab, LabFailed, LabNode
from tests.agents.replies import RETURN_PLAN
from tests.e2e.command import COMMAND
from tests.fleet.support import QUICK, Fleet, fleet
from tests.fleet.test_isolation import HOME_BYTES
from tests.gateway.model import TOKENS, Model, Tool
from tests.gateway.namespace import PROGRAMS
from tests.gateway.support import CANARY
from tests.gateway.test_agents import MODELS, PRICE
from tests.gateway.test_in_orchestra import fake_api
from tests.integration.test_isolation import HEAD, file_at, git, repo
from tests.scenes import BEHIND, CLASH, otherwise, tasks_of

__all__ = ["repo"]

pytestmark = pytest.mark.xdist_group("agents")
KINDS = ("claude", "codex")
WHERE = {"claude": "mugen", "codex": "majin"}
"""Kind -> the machine it works on."""
LOOP = "echo $$ > pid; while :; do sleep 0.2; done"
IN_LOOP = "while :; do"
ALLOWED = {"kinds.claude.permission_mode": "bypassPermissions"}
"""Also in a folder that tasks share."""
UNTIL_GO = "touch begun; until test -e go; do sleep 0.05; done; echo went on > went.txt"


@pytest.fixture
def lab(lab_folder: Path) -> Iterator[Lab]:
    """Two machines on which both programs are installed for their user."""
    machines = Lab(lab_folder, home_bytes=HOME_BYTES, programs={kind: PROGRAMS / kind for kind in KINDS})
    try:
        machines.__enter__()
    except LabFailed as error:
        pytest.fail(str(error), pytrace=False)
    try:
        yield machines
    finally:
        machines.close()
    assert machines.leftovers() == []


def gate(folder: Path, url: str) -> dict[str, str]:
    """Makes a gateway's file; its key is in another one on the control machine. Returns the settings."""
    key = folder / "key"
    key.write_text(CANARY)
    key.chmod(0o600)
    account = {"main": {"keys": [{"file": str(key)}]}}
    upstreams = {api: {"kind": api, "base_url": url, "accounts": account} for api in ("anthropic", "openai")}
    prices = {"unknown": PRICE, "models": dict.fromkeys(MODELS.values(), PRICE)}
    (folder / "gateway.json").write_text(json.dumps({"upstreams": upstreams, "prices": prices}))
    return {"gateway.file": str(folder / "gateway.json"), **{f"kinds.{kind}.model": name for kind, name in MODELS.items()}}


@asynccontextmanager
async def agents(lab: Lab, folder: Path, model: Model, count: int = 4, settings: Mapping[str, str] | None = None) -> AsyncIterator[Fleet]:
    """An orchestra with a gateway before the model."""
    with lab.inside():
        async with fake_api(model) as (_, url), fleet(lab, folder, agents=count, flags=gate(folder, url) | dict(settings or {})) as it:
            yield it


def both(scene: str, *more: str) -> str:
    """A task of each kind, each on its machine, named after it."""
    lines = [f"{{id: {kind}, agent: {kind}, node: {WHERE[kind]}, prompt: {scene}{''.join(more)}}}" for kind in KINDS]
    return HEAD + "".join(f"  - {line}\n" for line in lines)


def worktree(node: LabNode, task: str, script: str, *, check: bool = True) -> str:
    """Runs a shell script in the worktree of a task that is at work; returns what it printed."""
    place = f"cd ~/.local/state/orchestra/*/*/work/worktrees/p/{task}.* 2>/dev/null && "
    return node.run(["sh", "-c", place + script], check=check).stdout


async def wait_there(lab: Lab, file: str) -> None:
    """Waits until each kind's tool has made the file in its worktree."""
    for kind, name in WHERE.items():
        await wait_until(lambda node=lab.nodes[name], kind=kind: worktree(node, kind, f"cat {file} && echo there", check=False) != "")


def of_agents(node: LabNode) -> dict[int, str]:
    """Returns what runs on a machine of the CLIs and their tools."""
    starts = (*(f"{kind} " for kind in KINDS), "sleep 0.")
    return {pid: line for pid, line in node.processes().items() if line.startswith(starts) or "bwrap" in line or IN_LOOP in line}


async def usage_by(folder: Path, by: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = (await ask_admin(folder / "root/gateway/books/admin.sock", "usage", {"by": by}))["usage"]
    return found


def found_on(node: LabNode, text: str) -> list[str]:
    """Returns where on a machine a text is: files, environments and command lines."""
    script = "grep -rlf - /home /tmp /run /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null || true"  # not in its own command line
    return node.run(["sh", "-c", script], user="root", input=f"{text}\n").stdout.split()


def attempts(it: Fleet) -> dict[str, int]:
    return {kind: len(it.state.tasks[TaskId(f"p/{kind}")].attempts) for kind in KINDS}


async def test_both_work_on_their_machines_and_mend_what_a_check_found_wrong(lab: Lab, repo: Path, tmp_path: Path) -> None:
    """The first attempt is held while it asks, to look at what is on its machine; what it does is not enough, and the second is told so."""
    model = Model({"SCENE-GREET": ["echo helo > by-$(hostname)"], "SCENE-GREET-AGAIN": ["hostname > by-$(hostname)"]})
    asking = model.hold("SCENE-GREET")
    more = ', success_criteria: [{run: "echo wanted its name; grep -qx $(hostname) by-$(hostname)", name: it says its name}]'
    async with agents(lab, tmp_path, model) as it:
        plan = await it.stage.submit(both("SCENE-GREET", more), repo)
        await wait_until(lambda: model.asked("SCENE-GREET") == 2)
        for node in lab.nodes.values():
            assert of_agents(node)
            assert found_on(node, "ORCHESTRA_TASK=p/"), "environments are looked at"
            assert found_on(node, CANARY) == []
        asking.set()
        assert await it.stage.wait_plan(plan) == "completed"
        for task in it.state.tasks.values():
            first, second = task.attempts
            assert (first.node, second.node) == (NodeId(WHERE[task.spec.kind]), NodeId(WHERE[task.spec.kind]))
            assert first.outcome is not None
            assert first.outcome.kind is OutcomeKind.UNVERIFIED
            assert second.outcome is not None
            assert [(check.name, check.passed) for check in second.outcome.checks] == [("it says its name", True)]
        used = await usage_by(tmp_path, "attempt")
        assert {name: (row["requests"], row["input_tokens"]) for name, row in used.items()} == {
            f"p/{kind}#{number}": (2, 2 * TOKENS[0]) for kind in KINDS for number in (1, 2)
        }
    assert {turn.key for turn in model.turns} == {CANARY, f"Bearer {CANARY}"}
    assert [file_at(repo, f"by-{node}") for node in lab.nodes] == list(lab.nodes)
    assert git(repo, "for-each-ref", "--format=%(refname:short)", "refs/heads") == "main\norchestra/p/merged"


async def test_a_task_that_is_cancelled_leaves_nothing_on_its_machine(lab: Lab, repo: Path, tmp_path: Path) -> None:
    model = Model({"SCENE-LOOP": [LOOP]})
    model.hold("SCENE-LOOP", 1)  # Codex asks again while its command goes on
    async with agents(lab, tmp_path, model) as it:
        await it.stage.submit(both("SCENE-LOOP"), repo)
        await wait_there(lab, "pid")
        for kind, name in WHERE.items():
            assert any(IN_LOOP in line for line in of_agents(lab.nodes[name]).values()), "the tool is at work"
            await it.stage.app.cancel(CancelParams(task_id=f"p/{kind}"))
            await it.stage.wait_status(f"p/{kind}", TaskStatus.CANCELLED.value)
            assert of_agents(lab.nodes[name]) == {}
        assert attempts(it) == {"claude": 1, "codex": 1}


async def test_a_link_that_is_cut_while_a_tool_works_is_not_noticed_by_the_agents(lab: Lab, repo: Path, tmp_path: Path) -> None:
    model = Model({"SCENE-LONG": [UNTIL_GO]})
    async with agents(lab, tmp_path, model) as it:
        plan = await it.stage.submit(both("SCENE-LONG"), repo)
        await wait_there(lab, "begun")
        for node in lab.nodes.values():
            node.cut()
        for name in lab.nodes:
            await it.wait_node(name, NodeStatus.LOST)
        for node in lab.nodes.values():
            node.heal()
        for name in lab.nodes:
            await it.wait_node(name, NodeStatus.READY)
        for kind, name in WHERE.items():
            worktree(lab.nodes[name], kind, "touch go")
        assert await it.stage.wait_plan(plan) == "completed"
        assert attempts(it) == {"claude": 1, "codex": 1}


async def test_a_link_that_is_cut_while_the_model_answers_costs_no_task(lab: Lab, repo: Path, tmp_path: Path) -> None:
    """The answer is lost with the link. Whether the CLI asks again or another attempt does: the work is done and merged once."""
    model = Model({"SCENE-GREET": ["hostname > by-$(hostname)"]})
    asking = model.hold("SCENE-GREET")
    async with agents(lab, tmp_path, model) as it:
        plan = await it.stage.submit(both("SCENE-GREET"), repo)
        await wait_until(lambda: model.asked("SCENE-GREET") == 2)
        for node in lab.nodes.values():
            node.cut()
        for name in lab.nodes:
            await it.wait_node(name, NodeStatus.LOST)
        asking.set()
        for node in lab.nodes.values():
            node.heal()
        assert await it.stage.wait_plan(plan) == "completed"
        for task in it.state.tasks.values():
            assert sum(a.outcome is not None and a.outcome.kind is OutcomeKind.DONE for a in task.attempts) == 1
    assert [file_at(repo, f"by-{node}") for node in lab.nodes] == list(lab.nodes)


def asks(task: TaskId, state: State) -> bool | None:
    """Tells that a task's agent waits for an answer."""
    found = state.tasks[task].attempts
    return True if found and found[-1].question else None


async def test_both_in_their_windows_on_machines_ask_and_are_answered_from_here(lab: Lab, repo: Path, tmp_path: Path) -> None:
    """In this mode Claude Code is given its prompt in a file whose path has the task's name, so that is the scene."""
    model = Model({"SCENE-ASK": [("Write", {"file_path": "hello.txt", "content": "hello\n"})], "SCENE-RUN": ["echo hello > there.txt"]})
    modes = {f"kinds.{kind}.mode": "interactive" for kind in KINDS}
    asking = {"kinds.claude.permission_mode": "default", "kinds.codex.approval_policy": "untrusted"}
    scenes = {"claude": "SCENE-ASK", "codex": "SCENE-RUN"}
    tasks = "".join(f"  - {{id: {word}, agent: {kind}, node: {WHERE[kind]}, prompt: {word}}}\n" for kind, word in scenes.items())
    async with agents(lab, tmp_path, model, settings=modes | asking) as it:
        plan = await it.stage.submit(HEAD + tasks, repo)
        for word in scenes.values():
            await it.stage.wait(partial(asks, TaskId(f"p/{word}")))
            await it.stage.app.answer(AnswerParams(task_id=f"p/{word}", text="yes"))
        assert await it.stage.wait_plan(plan) == "completed"
        assert [len(it.state.tasks[TaskId(f"p/{word}")].attempts) for word in scenes.values()] == [1, 1]
        used = await usage_by(tmp_path, "attempt")
        assert [used[f"p/{word}#1"]["requests"] for word in scenes.values()] == [2, 2]
        await wait_until(lambda: not any(of_agents(node) for node in lab.nodes.values()))
    assert [file_at(repo, name) for name in ("hello.txt", "there.txt")] == ["hello", "hello"]


SCENES: dict[str, list[str | Tool]] = {
    "SCENE-SAY": [],
    "SCENE-TURNS": ["echo again"] * 9,
    "SCENE-LOOP": [LOOP],
    "SCENE-CLASH": [CLASH],
    "SCENE-PLAN": [RETURN_PLAN],
}


def plan_of_scenes() -> str:
    """Returns a plan with what becomes of an attempt, a conflict between two machines, a plan that is returned, and a task for a program that is not there."""
    claude, codex = WHERE["claude"], WHERE["codex"]
    tasks: list[dict[str, object]] = [
        {"id": f"{kind}-clash", "agent": kind, "node": WHERE[kind], "prompt": "SCENE-CLASH"} for kind in KINDS
    ]
    tasks += [
        {"id": "plan", "agent": "claude", "node": claude, "returns": "plan", "prompt": "SCENE-PLAN"},
        {"id": "read", "needs": ["plan"], "node": codex, "run": "grep -qx hello planned.txt"},
        {"id": "moved", "agent": "codex", "node": claude, "prompt": "SCENE-SAY"},
    ]
    tasks += [task for kind in KINDS for task in tasks_of(BEHIND[kind], kind, node=WHERE[kind], isolation="shared")]
    return json.dumps({"name": "p", "defaults": {"isolation": "worktree", "retry_backoff_seconds": 0.01}, "tasks": tasks})


def program_of(node: LabNode, kind: str, task: str) -> int:
    """Returns the pid of the program itself that does a task, as seen from outside."""
    own = f"ORCHESTRA_TASK={task}".encode()
    running = [pid for pid, line in of_agents(node).items() if line.startswith(f"{kind} ")]
    (pid,) = [pid for pid in running if own in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    return pid


async def test_each_end_there_has_its_word_too(lab: Lab, repo: Path, tmp_path: Path) -> None:
    """Many scenes in one plan: a machine for each kind, and no Codex on that of Claude Code."""
    lab.nodes[WHERE["claude"]].run(["rm", ".local/bin/codex"])
    model = Model(SCENES)
    model.hold("SCENE-LOOP", 1)  # Codex asks again while its command goes on
    both_begun = model.hold("SCENE-CLASH")
    async with agents(lab, tmp_path, model, 8, {"kinds.claude.max_turns": "3", **ALLOWED}) as it:
        plan = await it.stage.submit(plan_of_scenes(), repo)
        await wait_until(lambda: model.asked("SCENE-CLASH") == 2)
        both_begun.set()
        for kind, name in WHERE.items():
            node, task = lab.nodes[name], f"{kind}-SCENE-LOOP"
            await wait_until(lambda node=node, task=task: worktree(node, task, "cat pid", check=False) != "")
            assert any(IN_LOOP in line for line in of_agents(node).values()), "the tool is at work"
            os.kill(program_of(node, kind, f"p/{task}"), signal.SIGKILL)
            await it.stage.wait_status(f"p/{task}", TaskStatus.FAILED.value)
            assert not any(IN_LOOP in line for line in of_agents(node).values()), "it has a session of its own, and is gone too"
        for each in list(it.state.plans[PlanId(plan)].tasks):
            await it.stage.wait_status(each, *(status.value for status in TASK_TERMINAL))
        assert await it.stage.wait_plan(plan) == "failed"
        await wait_until(lambda: not any(of_agents(node) for node in lab.nodes.values()))

        results = it.stage.root.results_of(TaskId("p/plan")).parent
        assert {kind: otherwise(BEHIND[kind], kind, results) for kind in KINDS} == {kind: {} for kind in KINDS}
        for kind in KINDS:
            assert {len(it.state.tasks[TaskId(f"p/{kind}-{word}")].attempts) for word in BEHIND[kind]} == {1}
        clashed = {kind: it.state.tasks[TaskId(f"p/{kind}-clash")] for kind in KINDS}
        assert sorted((len(task.attempts), task.conflicts) for task in clashed.values()) == [(1, 0), (2, 1)]
        moved = json.loads((results / "moved" / "result.json").read_text())
        assert moved["status"] == "completed"
        assert any("codex" in warning and "claude" in warning for warning in moved["warnings"]), moved["warnings"]
        assert it.state.tasks[TaskId("p/read")].status is TaskStatus.COMPLETED, "what was planned came to the other machine"
        assert json.loads((results / "plan.greet" / "result.json").read_text())["planned_by"] == "p/plan"
    first, second = sorted(clashed, key=lambda kind: clashed[kind].conflicts)
    assert file_at(repo, "who.txt") == f"p/{first}-clash, then p/{second}-clash"


def begun(node: LabNode) -> list[str]:
    """Returns the files by which tools say that they have begun."""
    return node.run(["find", ".local/state/orchestra", "-name", "*.begun"], check=False).stdout.split()


async def test_eight_at_once_go_on_while_the_coordinator_is_killed_and_started_again(lab: Lab, repo: Path, tmp_path: Path) -> None:
    """In one folder a machine, which has a file for each of them while they wait."""
    model = Model({"SCENE-LONG": ["touch ${ORCHESTRA_TASK#*/}.begun; until test -e go; do sleep 0.05; done"]})
    tasks = [{"id": f"t{number}", "agent": KINDS[number % 2], "prompt": "SCENE-LONG", "isolation": "shared"} for number in range(8)]
    (repo / "plan.yaml").write_text(json.dumps({"name": "p", "agents": {"count": 8}, "tasks": tasks}))
    root = tmp_path / "root"
    (root / "config").mkdir(parents=True)
    (root / "config" / "orchestra.yaml").write_text(lab.settings_yaml())
    with lab.inside():
        async with fake_api(model) as (_, url):
            settings = {**QUICK, "ssh.config_file": str(lab.ssh_config), **gate(tmp_path, url), **ALLOWED}
            sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]

            async def start(*arguments: str) -> asyncio.subprocess.Process:
                argv = [str(COMMAND), "--root", str(root), *arguments]
                return await asyncio.create_subprocess_exec(
                    *argv, cwd=repo, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
                )

            async def connected() -> bool:
                out, _ = await (await start("--json", "node", "list")).communicate()
                return [node["connected"] for node in json.loads(out or b'{"nodes": []}')["nodes"]] == [True, True]

            first = await start("run", "plan.yaml", *sets)
            await wait_until(lambda: sum(len(begun(node)) for node in lab.nodes.values()) == 8)
            first.kill()
            await first.communicate()
            second = await start("run", "plan.yaml", "--resume", *sets)
            await wait_until(connected)
            for node in lab.nodes.values():
                node.run(["touch", str(Path(begun(node)[0]).with_name("go"))])
            await second.communicate()
            assert second.returncode == 0
    leftovers = processes_left(root)
    end_processes(leftovers)
    assert not leftovers
    assert not any(of_agents(node) for node in lab.nodes.values())
    state = check_books(root)
    assert [len(task.attempts) for task in state.tasks.values()] == [1] * 8
    assert {attempt.agent for task in state.tasks.values() for attempt in task.attempts} == set(range(1, 9))
