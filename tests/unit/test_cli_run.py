"""`orchestra run`: what it asks for, how it ends (0, 1, 2, 3), and Ctrl-C once and twice."""

from __future__ import annotations

import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestra.core import events as e
from orchestra.core.model import PlanStatus
from orchestra.edges.cli.main import cli
from orchestra.edges.cli.session import Session
from orchestra.errors import CoordinatorUnreachable, LedgerFailed, PlanInvalid, Refused
from orchestra.ids import AgentId, PlanId, TaskId
from orchestra.intake.request import InitParams, ScaleParams, ShutdownParams
from orchestra.testing.fake_usecases import FakeHosted, FakeUseCases, FakeWiring, make_detail, make_plan, make_status, make_task, make_watch
from orchestra.usecases import PlanParams, PlanReply, PlansReply, ScaleReply, WatchReply
from orchestra.views import PlanLine

PLAN = "name: demo\nagents: {count: 3, kind: shell}\ntasks:\n  - {id: a, description: Do one thing, run: 'true'}\n"
A = TaskId("demo/a")
DONE = (e.AttemptAssigned(A, 1, AgentId(1)), e.TaskCompleted(A, 1), e.PlanClosed(PlanId("demo"), PlanStatus.COMPLETED))
FAILED = (e.TaskFailed(A, "exit code 3"), e.PlanClosed(PlanId("demo"), PlanStatus.FAILED))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    return file


def make_wiring(*watched: object, ending: str = "completed", running: bool = False, status: str = "uninitialized") -> FakeWiring:
    """Returns a world where the plan's events come as `watched` says and the plan ends as `ending`."""
    task = make_task("demo/a", "failed", reason="exit code 3") if ending == "failed" else make_task("demo/a", ending)
    fake = FakeUseCases().on("watch", make_watch(5), *watched).on("status", make_status(status)).on("scale", ScaleReply("scaling", 2, 7, 1))
    fake.on("plan", make_plan(ending, task)).on("task", make_detail(task))
    return FakeWiring(fake, running=running)


def run(wiring: FakeWiring, *args: object) -> Result:
    return CliRunner().invoke(cli, ["run", *map(str, args), "--root", "/x"], obj=Session(wiring))


def result_of(said: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
    return found


# --- how it ends ---------------------------------------------------------------------------------------------------------


def test_all_completed_ends_with_0_and_closes_what_it_started(plan: Path) -> None:
    wiring = make_wiring(make_watch(8, *DONE))
    said = run(wiring, plan)
    assert said.exit_code == 0, said.output
    assert wiring.log == ["host /x"]
    asked = [name for name, _ in wiring.fake.calls]
    assert asked.index("init") < asked.index("submit_plan") < asked.index("report") < asked.index("shutdown")
    assert wiring.fake.asked("submit_plan") == [PlanParams(PLAN, str(plan), str(plan.parent), False)]
    assert "start   a on agent #1" in said.stdout
    assert "done    a (1 of 1)" in said.stdout
    assert "demo completed: 1 of 1 tasks completed" in said.stdout
    assert said.stdout.endswith("report: /r/demo.html\n")


def test_a_failure_ends_with_1_and_shows_its_last_words(plan: Path) -> None:
    said = run(make_wiring(make_watch(7, *FAILED), ending="failed"), plan)
    assert said.exit_code == 1
    for words in (
        "failed  a: exit code 3",
        "✗ demo/a: exit code 3",
        "    | last words",
        "orchestra task logs demo/a",
        "report: /r/demo.html",
    ):
        assert words in said.stdout


@pytest.mark.parametrize(
    "text", ["", "name: demo\n", "tasks: [", "name: demo\ntasks:\n  - {id: a, needs: [a], description: x, run: y}\n", "\x00"]
)
def test_a_plan_that_is_not_usable_ends_with_2_and_starts_nothing(plan: Path, text: str) -> None:
    plan.write_text(text)
    wiring = make_wiring()
    said = run(wiring, plan)
    assert (said.exit_code, wiring.log, wiring.fake.calls) == (2, [], [])
    assert said.stderr.startswith("error: ")


@pytest.mark.parametrize(
    "make", [lambda file: file.unlink(), lambda file: file.write_bytes(b"\xff\xfe"), lambda file: (file.unlink(), file.mkdir())]
)
def test_a_plan_that_cannot_be_read_ends_with_2_and_starts_nothing(plan: Path, make: Callable[[Path], object]) -> None:
    make(plan)
    wiring = make_wiring()
    assert run(wiring, plan).exit_code == 2
    assert wiring.log == []


def test_a_plan_refused_by_the_orchestra_ends_with_2_and_leaves_nothing_running(plan: Path) -> None:
    wiring = make_wiring()
    wiring.fake.on("submit_plan", PlanInvalid("task 'a': there is no agent kind 'x'", field="tasks[0].agent"))
    said = run(wiring, plan)
    assert said.exit_code == 2
    assert [params.graceful for params in wiring.fake.asked("shutdown")] == [False]


def test_an_orchestra_that_ends_before_the_plan_ends_with_3(plan: Path) -> None:
    said = run(make_wiring(make_watch(6, e.Terminated()), ending="running"), plan)
    assert said.exit_code == 3
    assert f"orchestra run {plan} --resume --root /x" in said.stderr


def test_a_coordinator_that_fails_ends_with_3_and_says_why(plan: Path) -> None:
    class Failing(FakeHosted):
        async def wait_ended(self) -> None:
            await self._fake.wait_asked("watch", 2)
            raise LedgerFailed("the disk is full", hint="make room")

    async def nothing_comes(params: object) -> WatchReply:
        await wiring.fake.wait_asked("shutdown")
        raise AssertionError("nobody asks a failed orchestra to end")

    wiring = make_wiring(nothing_comes, ending="running")
    wiring.make_hosted = Failing
    said = run(wiring, plan)
    assert said.exit_code == 3
    assert "error: the disk is full\nhint: make room" in said.stderr
    assert "--resume" in said.stderr


def test_a_coordinator_that_vanishes_ends_with_3(plan: Path) -> None:
    wiring = make_wiring(CoordinatorUnreachable("gone"), running=True, status="running")
    wiring.fake.on("plan", CoordinatorUnreachable("gone"))
    assert run(wiring, plan).exit_code == 3


def test_a_plan_that_closed_unseen_is_noticed(plan: Path) -> None:
    wiring = make_wiring(WatchReply(9, ()))
    wiring.fake.on("plans", PlansReply((PlanLine("demo", "demo", "completed", 1, 0, 0, 0, 1),)))
    assert run(wiring, plan).exit_code == 0


def test_a_report_that_cannot_be_written_does_not_hide_the_end(plan: Path) -> None:
    wiring = make_wiring(make_watch(8, *DONE))
    wiring.fake.on("report", LedgerFailed("the disk is full"))
    said = run(wiring, plan)
    assert said.exit_code == 0, said.output
    assert "demo completed" in said.stdout


# --- the fleet -----------------------------------------------------------------------------------------------------------


def test_agents_are_as_the_plan_says_or_as_asked(plan: Path) -> None:
    wiring = make_wiring(make_watch(8, *DONE))
    run(wiring, plan)
    [asked] = wiring.fake.asked("init")
    assert [(group.count, group.kind) for group in asked.agents] == [(3, "shell")]
    wiring = make_wiring(make_watch(8, *DONE))
    run(wiring, plan, "--agents", "7")
    assert wiring.fake.asked("init") == [InitParams(agent_count=7)]


def test_a_running_orchestra_is_used_grown_if_asked_and_left_running(plan: Path) -> None:
    wiring = make_wiring(make_watch(8, *DONE), running=True, status="running")
    assert run(wiring, plan, "--agents", "7").exit_code == 0
    assert wiring.log == ["connect /x"]
    assert wiring.fake.asked("scale") == [ScaleParams(target_count=7)]
    assert wiring.fake.asked("init") == wiring.fake.asked("shutdown") == []
    wiring = make_wiring(make_watch(8, *DONE), running=True, status="running")
    run(wiring, plan, "--agents", "2")
    assert wiring.fake.asked("scale") == []


def test_keep_leaves_the_windows_up(plan: Path) -> None:
    wiring = make_wiring(make_watch(8, *DONE))
    assert run(wiring, plan, "--keep").exit_code == 0
    assert wiring.hosted[0].detached
    assert wiring.fake.asked("shutdown") == []


def test_resume_says_so(plan: Path) -> None:
    wiring = make_wiring(make_watch(8, *DONE))
    wiring.fake.on("submit_plan", PlanReply("demo", 1, True))
    said = run(wiring, plan, "--resume")
    assert wiring.fake.asked("submit_plan")[0].resume
    assert "going on with demo: 1 tasks" in said.stdout


def test_an_orchestra_that_was_still_ending_is_waited_for_and_started_anew(plan: Path) -> None:
    class Ended(FakeHosted):
        async def wait_ended(self) -> None:
            if len(wiring.hosted) > 1:
                await super().wait_ended()

    wiring = make_wiring(make_watch(8, *DONE))
    wiring.fake.on("status", make_status("draining"), make_status("uninitialized"), make_status("uninitialized"))
    wiring.make_hosted = Ended
    assert run(wiring, plan).exit_code == 0
    assert wiring.log == ["host /x", "host /x"]


def test_attach_wants_a_terminal(plan: Path) -> None:
    wiring = make_wiring()
    assert run(wiring, plan, "--attach").exit_code == 2
    assert wiring.log == []


def test_a_refused_start_leaves_no_coordinator_in_its_window(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestra.edges.cli.render.Renderer.on_terminal", True)
    wiring = make_wiring()
    wiring.fake.on("init", Refused("they do not fit"))
    assert run(wiring, plan, "--attach").exit_code == 2
    assert wiring.log == ["start /x", "connect /x", "abandon /x"]


def test_attach_shows_the_windows_and_then_the_progress(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []

    async def spawn(*argv: str, env: dict[str, str]) -> Any:
        async def wait() -> int:
            return 0

        ran.append(argv)
        assert "TMUX" not in env
        return type("Child", (), {"wait": staticmethod(wait)})()

    monkeypatch.setenv("TMUX", "x")
    monkeypatch.setattr("asyncio.create_subprocess_exec", spawn)
    monkeypatch.setattr("orchestra.edges.cli.render.Renderer.on_terminal", True)
    wiring = make_wiring(make_watch(8, *DONE), CoordinatorUnreachable("gone"))
    assert run(wiring, plan, "--attach").exit_code == 0
    assert wiring.log == ["start /x", "connect /x"]
    assert ran == [("tmux", "attach")]
    assert wiring.fake.asked("shutdown") == [ShutdownParams(graceful=True, drain_tasks=False)]


# --- faces ---------------------------------------------------------------------------------------------------------------


def test_json_is_a_line_an_event_and_a_result(plan: Path) -> None:
    said = run(make_wiring(make_watch(8, *DONE)), plan, "--json")
    lines = [json.loads(line) for line in said.stdout.splitlines()]
    assert [line["type"] for line in lines] == ["plan", "event", "event", "event", "result"]
    assert lines[0] == {"type": "plan", "plan": "demo", "tasks": 1, "resumed": False, "rehearsal": False, "warnings": []}
    assert (lines[1]["seq"], lines[1]["event"]["type"]) == (6, "AttemptAssigned")
    assert lines[-1] | {"duration_ms": 0} == {
        "type": "result",
        "plan": "demo",
        "status": "completed",
        "exit_code": 0,
        "tasks": {"queued": 0, "in_progress": 0, "completed": 1, "failed": 0, "cancelled": 0},
        "duration_ms": 0,
        "failures": [],
        "report": {"plan": "demo", "html": "/r/demo.html", "markdown": "/r/demo.md"},
        "rehearsal": False,
    }


def test_json_names_what_failed(plan: Path) -> None:
    said = run(make_wiring(make_watch(7, *FAILED), ending="failed"), plan, "--json")
    failure = {"task": "demo/a", "status": "failed", "reason": "exit code 3", "tail": ["first line", "last words"]}
    assert result_of(said)["failures"] == [failure]
    assert (said.exit_code, result_of(said)["exit_code"]) == (1, 1)


def test_json_of_an_unfinished_run(plan: Path) -> None:
    said = run(make_wiring(make_watch(6, e.Terminated()), ending="running"), plan, "--json")
    assert (result_of(said)["status"], result_of(said)["exit_code"]) == ("unfinished", 3)
    assert "--resume" in json.loads(said.stderr.splitlines()[-1])["error"]["hint"]


def test_quiet_says_nothing_but_errors(plan: Path) -> None:
    said = run(make_wiring(make_watch(8, *DONE)), plan, "--quiet")
    assert (said.exit_code, said.output) == (0, "")
    said = run(make_wiring(make_watch(7, *FAILED), ending="failed"), plan, "--quiet")
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr.startswith("error: 1 of 1 tasks failed: demo/a\n")


def test_other_plans_and_hostile_reasons_do_not_disturb_the_lines(plan: Path) -> None:
    other = e.TaskFailed(TaskId("other/a"), "not ours")
    said = run(make_wiring(make_watch(8, other, e.TaskFailed(A, "bad\x1b[2J\nnews"), FAILED[1]), ending="failed"), plan)
    assert "not ours" not in said.stdout
    assert "\x1b" not in said.stdout
    assert "failed  a: bad␛[2J news\n" in said.stdout


# --- Ctrl-C --------------------------------------------------------------------------------------------------------------


def after_signals(wiring: FakeWiring, number: int, times: int, then: WatchReply) -> Callable[[object], Awaitable[WatchReply]]:
    """Returns a watch that raises a signal, waits until it was obeyed, again if asked to, and then answers."""

    async def watch(params: object) -> WatchReply:
        for count in range(1, times + 1):
            signal.raise_signal(number)
            await wiring.fake.wait_asked("shutdown", count)
        return then

    return watch


class Patient(FakeHosted):
    """Ends when the second shutdown was asked for: what runs holds the first one up."""

    async def wait_ended(self) -> None:
        await self._fake.wait_asked("shutdown", 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_request_to_stop_lets_running_tasks_finish(plan: Path, number: int) -> None:
    wiring = make_wiring(ending="running")
    wiring.fake.on("watch", make_watch(5), after_signals(wiring, number, 1, make_watch(6, e.Terminated())))
    wiring.make_hosted = Patient
    said = run(wiring, plan)
    assert said.exit_code == 3
    assert wiring.fake.asked("shutdown")[0] == ShutdownParams(graceful=True, drain_tasks=False)
    assert "press Ctrl-C again to stop them" in said.stderr
    assert f"error: {plan} is not finished: it was interrupted\nhint: go on with `orchestra run {plan} --resume --root /x`" in said.stderr


def test_the_second_request_stops_them(plan: Path) -> None:
    wiring = make_wiring(ending="running")
    wiring.fake.on("watch", make_watch(5), after_signals(wiring, signal.SIGINT, 2, make_watch(6, e.Terminated())))
    wiring.make_hosted = Patient
    assert run(wiring, plan).exit_code == 3
    assert [(asked.graceful, asked.drain_tasks) for asked in wiring.fake.asked("shutdown")[:2]] == [(True, False), (False, False)]


def test_a_plan_that_finishes_while_it_is_stopped_is_finished(plan: Path) -> None:
    wiring = make_wiring()
    wiring.fake.on("watch", make_watch(5), after_signals(wiring, signal.SIGINT, 1, make_watch(8, *DONE)))
    said = run(wiring, plan)
    assert said.exit_code == 0
    assert "not finished" not in said.stderr


def test_stopping_before_the_plan_was_started_undoes_the_start(plan: Path) -> None:
    async def init(params: object) -> None:
        signal.raise_signal(signal.SIGINT)
        await wiring.fake.wait_asked("submit_plan")

    wiring = make_wiring()
    wiring.fake.on("init", init)
    said = run(wiring, plan)
    assert said.exit_code == 3
    assert wiring.fake.asked("submit_plan") == []
    assert [asked.graceful for asked in wiring.fake.asked("shutdown")] == [False]


def test_ctrl_c_leaves_an_orchestra_of_somebody_else_alone(plan: Path) -> None:
    async def watch(params: object) -> WatchReply:
        signal.raise_signal(signal.SIGINT)
        await wiring.fake.wait_asked("shutdown")
        raise AssertionError("it is not ours to end")

    wiring = make_wiring(ending="running", running=True, status="running")
    wiring.fake.on("watch", make_watch(5), watch)
    said = run(wiring, plan)
    assert said.exit_code == 3
    assert wiring.fake.asked("shutdown") == []
    assert "goes on without you" in said.stderr
    assert "orchestra task cancel demo" in said.stderr


def test_a_refused_shutdown_does_not_hide_the_end(plan: Path) -> None:
    wiring = make_wiring(make_watch(8, *DONE))
    wiring.fake.on("shutdown", Refused("it has ended already"))
    assert run(wiring, plan).exit_code == 0


def test_a_reader_that_goes_away_ends_what_was_started(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*args: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("orchestra.edges.cli.screens.LineScreen.on_news", gone)
    monkeypatch.setattr("orchestra.edges.cli.grammar.drop_output", lambda: None)
    wiring = make_wiring(make_watch(8, *DONE))
    assert run(wiring, plan).exit_code == 141
    assert [asked.graceful for asked in wiring.fake.asked("shutdown")] == [False]


def test_on_a_terminal_the_plan_is_drawn(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestra.edges.cli.render.Renderer.on_terminal", True)
    wiring = make_wiring(make_watch(8, *DONE))
    said = run(wiring, plan)
    assert said.exit_code == 0, said.output
    assert wiring.fake.asked("plan")
    assert wiring.fake.asked("watch")[1].wait_ms < 1000
    assert "demo completed" in said.stdout
