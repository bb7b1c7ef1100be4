"""Claude Code and Codex as they are, on machines reached by SSH: in tmux windows there, in worktrees that were sent there, with a token and never a key. The
model is scripted; whoever asks it comes by the gateway of the control machine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestra.core.model import NodeStatus, OutcomeKind, TaskStatus
from orchestra.gateway.admin import ask_admin
from orchestra.ids import NodeId, TaskId
from orchestra.intake.request import AnswerParams, CancelParams
from orchestra.testing.hosted import wait_until
from orchestra.testing.lab import Lab, LabFailed, LabNode
from tests.fleet.support import Fleet, fleet
from tests.fleet.test_isolation import HOME_BYTES
from tests.gateway.model import TOKENS, Model
from tests.gateway.namespace import PROGRAMS
from tests.gateway.support import CANARY
from tests.gateway.test_agents import MODELS, PRICE
from tests.gateway.test_in_orchestra import fake_api
from tests.integration.test_isolation import HEAD, file_at, git, repo

__all__ = ["repo"]

pytestmark = pytest.mark.xdist_group("agents")
KINDS = ("claude", "codex")
WHERE = {"claude": "mugen", "codex": "majin"}
"""Kind -> the machine it works on."""
LOOP = "echo $$ > pid; while :; do sleep 0.2; done"
IN_LOOP = "while :; do"
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


@asynccontextmanager
async def agents(lab: Lab, folder: Path, model: Model, **flags: str) -> AsyncIterator[Fleet]:
    """An orchestra with a gateway before the model; its key is in a file on the control machine."""
    key = folder / "key"
    key.write_text(CANARY)
    key.chmod(0o600)
    with lab.inside():
        async with fake_api(model) as (_, url):
            account = {"main": {"keys": [{"file": str(key)}]}}
            upstreams = {api: {"kind": api, "base_url": url, "accounts": account} for api in ("anthropic", "openai")}
            prices = {"unknown": PRICE, "models": dict.fromkeys(MODELS.values(), PRICE)}
            (folder / "gateway.json").write_text(json.dumps({"upstreams": upstreams, "prices": prices}))
            settings = {f"kinds.{kind}.model": name for kind, name in MODELS.items()}
            settings |= {"gateway.file": str(folder / "gateway.json"), **{name.replace("__", "."): value for name, value in flags.items()}}
            async with fleet(lab, folder, agents=4, flags=settings) as it:
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
    assert file_at(repo, "went.txt") == "went on"


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


async def test_claude_code_in_its_window_on_a_machine_asks_and_is_answered_from_here(lab: Lab, repo: Path, tmp_path: Path) -> None:
    """In this mode the prompt is in a file whose path has the task's name, so that is the scene."""
    model = Model({"SCENE-ASK": [("Write", {"file_path": "hello.txt", "content": "hello\n"})]})
    flags = {"kinds__claude__mode": "interactive", "kinds__claude__permission_mode": "default"}
    async with agents(lab, tmp_path, model, **flags) as it:
        plan = await it.stage.submit(HEAD + "  - {id: SCENE-ASK, agent: claude, node: majin, prompt: Greet}\n", repo)
        task = TaskId("p/SCENE-ASK")
        await it.stage.wait(lambda state: True if (a := state.tasks[task].attempts) and a[-1].question else None)
        await it.stage.app.answer(AnswerParams(task_id=str(task), text="yes"))
        assert await it.stage.wait_plan(plan) == "completed"
        assert len(it.state.tasks[task].attempts) == 1
        assert (await usage_by(tmp_path, "attempt"))["p/SCENE-ASK#1"]["requests"] == 2
        await wait_until(lambda: of_agents(lab.nodes["majin"]) == {})
    assert file_at(repo, "hello.txt") == "hello"
