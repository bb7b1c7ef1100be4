"""Sample runs to show and to test with: made from a few lines, the same every time, and shaped like what the engine gives."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from orchestra.views import AgentView, AttemptView, CheckView, PlanView, ReportData, TaskDetail, TaskView

BEGIN_MS: Final = 1_764_529_200_000
"""2025-11-30 19:00:00 UTC, when sample runs begin."""
HOSTILE: Final = (
    "\x1b]0;owned\x07\x1b[2J\x1b[31mred\x1b[0m <script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    " \u202eevil\u202c \u2066x\u2069 ]]> --> </title></style></textarea></pre> {{ 7*7 }} {% raw %} `rm -rf /` | a || b [x](javascript:alert(1))"
    " \ud800 \x00 \x9b31m \u200b &amp; '\" \\"
)
"""Text that tries everything a task could do to whoever looks at it."""

SOME_PLAN: Final[tuple[tuple[str, str, int, tuple[str, ...]], ...]] = (
    ("plan", "Break the framework into modules and name their interfaces", 600, ()),
    ("core", "Application, request and response", 900, ("plan",)),
    ("http", "Server, headers, cookies and bodies", 840, ("plan",)),
    ("routing", "Routes, parameters and reverse lookup", 660, ("plan",)),
    ("tools", "Small tools the other modules share", 420, ("plan",)),
    ("templating", "Template loader, filters and inheritance", 780, ("core", "http")),
    ("database", "Connections, migrations and a query builder", 1200, ("core", "tools")),
    ("auth", "Sessions, password hashes and permissions", 960, ("routing", "http")),
    ("validation", "Schemas and error messages", 600, ("routing", "tools")),
    ("command-line", "Commands to make, run and check a project", 720, ("templating", "database", "auth", "validation")),
    ("tests", "Test suite for all modules", 900, ("command-line",)),
    ("docs", "Guides and examples", 540, ("command-line",)),
    ("packaging", "Build files, lint settings and the pipeline", 360, ("command-line", "plan")),
    ("review", "Read everything once more with fresh eyes", 600, ("tests", "docs", "packaging")),
    ("verify", "Run all tests on a clean checkout", 300, ("review",)),
)
"""Name, description, seconds, needs."""


def sample_task(name: str, *, plan: str = "webapp.1", status: str = "completed", **changes: object) -> TaskView:
    """Returns one line of a task list; any field can be changed."""
    task = TaskView(
        task=f"{plan}/{name}",
        description=f"Work on {name}",
        status=status,
        kind="rehearsal",
        category="coding",
        priority="normal",
        plan=plan,
        needs=(),
        agents=(1,),
        attempts=1,
        failures=0,
        queued_ms=BEGIN_MS,
        started_ms=BEGIN_MS + 1000,
        ended_ms=BEGIN_MS + 61_000,
        duration_ms=60_000,
        estimate_ms=60_000,
        rank_ms=60_000,
    )
    return msgspec.structs.replace(task, **changes)


def sample_attempt(
    number: int = 1, *, agent: int = 1, begin_ms: int = BEGIN_MS, end_ms: int = BEGIN_MS + 60_000, **changes: object
) -> AttemptView:
    """Returns one attempt that went well; any field can be changed. Without an end it goes on."""
    attempt = AttemptView(
        number=number,
        agent=agent,
        node="local",
        status="ended" if end_ms else "running",
        outcome="done" if end_ms else "",
        reason="",
        code=0 if end_ms else None,
        signal=None,
        assigned_ms=begin_ms,
        started_ms=begin_ms,
        ended_ms=end_ms,
        duration_ms=max(0, end_ms - begin_ms),
        checks=(),
        tail=(),
        tokens=12_000,
        cost_usd_micros=41_000,
        rss_bytes_max=80 << 20,
        folder=f"/work/.codex/nodes/local/attempts/{number}",
    )
    return msgspec.structs.replace(attempt, **changes)


def sample_check(name: str = "tests pass", *, passed: bool = True, duration_ms: int = 20_000, tail: tuple[str, ...] = ()) -> CheckView:
    """Returns what one check came to."""
    return CheckView(name, passed, 0 if passed else 1, "" if passed else "exit code 1", duration_ms, tail)


def sample_agent(agent: int, **changes: object) -> AgentView:
    """Returns an idle agent; any field can be changed."""
    name = f"CCG-{agent}" if agent <= 3 else f"CG-{agent - 3}"
    idle = AgentView(agent, name, "rehearsal", "local", "idle", None, 0, BEGIN_MS, 0, 0, 0, 1000 + agent)
    return msgspec.structs.replace(idle, **changes)


def sample_detail(task: TaskView, attempts: Sequence[AttemptView], *, root: str = "/work/.codex") -> TaskDetail:
    """Returns the details of a task with these attempts; the one that is done counts."""
    primary = next((attempt.number for attempt in attempts if attempt.outcome == "done"), 0)
    return TaskDetail(task, "", tuple(attempts), primary, ("tests pass",), 3, (), f"{root}/results/{task.task}")


def sample_plan_view(tasks: Sequence[TaskView], *, now_ms: int = 0, critical: Sequence[str] = (), **changes: object) -> PlanView:
    """Returns a plan of these tasks; closed if all of them are over."""
    over = all(task.status in ("completed", "failed", "cancelled") for task in tasks)
    end = max([now_ms, BEGIN_MS, *(task.ended_ms for task in tasks)])
    status = "running" if not over else ("failed" if any(task.status == "failed" for task in tasks) else "completed")
    plan = PlanView("webapp.1", "webapp", status, "examples/webapp.yaml", BEGIN_MS, end if over else 0, end, tuple(tasks), tuple(critical))
    return msgspec.structs.replace(plan, **changes)


def sample_report_data(
    details: Sequence[TaskDetail] | None = None, *, agents: int = 8, critical: Sequence[str] = (), **changes: object
) -> ReportData:
    """Returns a run of these tasks; without any, of the sample plan with one retry and one failure."""
    if details is None:
        return some_run(agents=agents)
    plan = sample_plan_view([detail.task for detail in details], critical=critical)
    fleet = tuple(sample_agent(agent) for agent in range(1, agents + 1))
    data = ReportData("sample", plan, tuple(details), fleet, plan.now_ms, "0.1.0", "/work/.codex")
    return msgspec.structs.replace(data, **changes)


Ending = Callable[[str, int], tuple[str, str, tuple[str, ...]]]
"""From a task's name and an attempt's number to the outcome, the reason and the last lines."""


def some_endings(name: str, number: int) -> tuple[str, str, tuple[str, ...]]:
    """Returns how the sample plan goes: `database` needs a second attempt, `docs` fails."""
    if name == "database" and number == 1:
        return "unverified", "check 'tests pass' failed: exit code 1", _PYTEST_TAIL
    if name == "docs":
        return "timeout", "no end after 9 minutes", ("writing guide 3 of 7", "waiting for the model ...")
    return "done", "", ()


_PYTEST_TAIL: Final = (
    "tests/test_migrations.py::test_down_undoes_up FAILED",
    "E   sqlite3.OperationalError: no such column: created_at",
    "tests/test_migrations.py:41: OperationalError",
    "1 failed, 11 passed in 4.82s",
)


def some_run(*, agents: int = 8, endings: Ending = some_endings) -> ReportData:
    """Returns the sample plan as it runs on so many agents: each task goes to the agent that is free first, two attempts at most."""
    rng = random.Random(7)
    free = dict.fromkeys(range(1, agents + 1), BEGIN_MS + 2000)
    details: dict[str, TaskDetail] = {}
    for name, description, seconds, needs in SOME_PLAN:
        before = [details[need].task for need in needs]
        task = sample_task(
            name,
            description=description,
            needs=tuple(need.task for need in before),
            estimate_ms=seconds * 1000,
            rank_ms=seconds * 1000,
        )
        if any(need.status in ("failed", "cancelled") for need in before):
            lost = next(need for need in before if need.status in ("failed", "cancelled"))
            blank = {"status": "cancelled", "started_ms": 0, "ended_ms": lost.ended_ms, "duration_ms": 0, "attempts": 0, "agents": ()}
            task = msgspec.structs.replace(task, reason=f"{lost.task} did not complete", **blank)
            details[name] = sample_detail(task, ())
            continue
        ready = max((need.ended_ms for need in before), default=BEGIN_MS)
        details[name] = _tried(task, name, ready, free, rng, endings)
    chain = ("plan", "core", "database", "command-line", "tests", "review", "verify")
    return sample_report_data(list(details.values()), agents=agents, critical=[details[name].task.task for name in chain])


def _tried(task: TaskView, name: str, ready: int, free: dict[int, int], rng: random.Random, endings: Ending) -> TaskDetail:
    attempts: list[AttemptView] = []
    while not attempts or (attempts[-1].outcome != "done" and len(attempts) < 2):
        agent = min(free, key=lambda each: (max(free[each], ready), each))
        begin = max(free[agent], ready) + 800
        end = begin + int(task.estimate_ms * rng.uniform(0.6, 1.2))
        outcome, reason, tail = endings(name, len(attempts) + 1)
        checks = (
            ()
            if outcome == "timeout"
            else (sample_check(passed=outcome == "done", duration_ms=(end - begin) // 7, tail=tail), sample_check("lint"))
        )
        bad = {"outcome": outcome, "reason": reason, "tail": tail, "code": 1} if outcome != "done" else {}
        attempts.append(sample_attempt(len(attempts) + 1, agent=agent, begin_ms=begin, end_ms=end, checks=checks, **bad))
        free[agent] = end
        ready = end + 60_000
    last = attempts[-1]
    done = last.outcome == "done"
    changes: dict[str, object] = {"status": "completed"} if done else {"status": "failed", "reason": last.reason}
    task = msgspec.structs.replace(
        task,
        agents=(last.agent,),
        attempts=len(attempts),
        failures=sum(attempt.outcome != "done" for attempt in attempts),
        started_ms=attempts[0].started_ms,
        ended_ms=last.ended_ms,
        duration_ms=last.ended_ms - attempts[0].started_ms,
        **changes,
    )
    return sample_detail(task, attempts)


def hostile_run() -> ReportData:
    """Returns a run in which every text is hostile."""
    tail = (HOSTILE,) * 3
    checks = (CheckView(HOSTILE, False, 1, HOSTILE, 5000, tail),)
    attempt = sample_attempt(outcome="failed", reason=HOSTILE, tail=tail, checks=checks)
    task = sample_task("evil", status="failed", description=HOSTILE, reason=HOSTILE)
    other = sample_task("other", description=HOSTILE, needs=(task.task,), task=HOSTILE)
    details = [sample_detail(task, [attempt]), sample_detail(other, [sample_attempt(agent=2)])]
    data = sample_report_data(details, agents=2)
    fleet = tuple(sample_agent(agent, name=HOSTILE, kind=HOSTILE) for agent in (1, 2))
    plan = msgspec.structs.replace(data.plan, name=HOSTILE, source=HOSTILE, plan=HOSTILE)
    return msgspec.structs.replace(data, orchestra=HOSTILE, agents=fleet, plan=plan, version=HOSTILE)


def large_run(tasks: int, *, agents: int = 50, width: int = 40, bad: bool = False, text: str = "Does its part of the whole") -> ReportData:
    """Returns a run of many tasks in layers of `width`; `bad` makes every attempt fail with a long log."""
    details: list[TaskDetail] = []
    outcome = "failed" if bad else "done"
    for index in range(tasks):
        layer, place = divmod(index, width)
        needs = tuple(details[(layer - 1) * width + other % width].task.task for other in (place, place + 1)) if layer else ()
        begin = BEGIN_MS + layer * 60_000 + place * 37
        tail = (text,) * 40 if bad else ()
        attempt = sample_attempt(
            agent=place % agents + 1,
            begin_ms=begin,
            end_ms=begin + 45_000,
            outcome=outcome,
            reason=text if bad else "",
            tail=tail,
            checks=tuple(sample_check(f"check {number} {text}"[:200], passed=not bad, tail=tail, duration_ms=2000) for number in range(3)),
        )
        task = sample_task(
            f"task-{index:05}",
            plan="large.1",
            status="failed" if bad else "completed",
            description=text,
            needs=tuple(dict.fromkeys(needs)),
            reason=text if bad else "",
            started_ms=begin,
            ended_ms=begin + 45_000,
            agents=(attempt.agent,),
        )
        details.append(sample_detail(task, [attempt]))
    return sample_report_data(details, agents=agents)
