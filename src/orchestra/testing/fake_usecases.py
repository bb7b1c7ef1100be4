"""Use cases that answer by script, and a bootstrap round them: what an interface is tested with.

An answer is a value, an error to raise, or a function of the parameters (plain or async) that returns either. Of several answers each is
given once, the last for ever. A method without a script has a small sensible answer from `DEFAULTS` or fails the test.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from inspect import isawaitable
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from orchestra.bootstrap.nodes import NodeCheck, NodeKinds
from orchestra.bootstrap.trust import KeyOffer
from orchestra.core import events as e
from orchestra.core.model import NodeSpec, TaskDefaults
from orchestra.costviews import BudgetsReply, CostReply, CostRow
from orchestra.errors import CoordinatorUnreachable, HostKeyRefused
from orchestra.ids import NodeId
from orchestra.intake.request import InitParams
from orchestra.ledgers.care import RepairPlan, VerifyReport
from orchestra.ledgers.marks import Mark
from orchestra.nodes.probe import Finding
from orchestra.settings import Settings
from orchestra.spending import total_of
from orchestra.usecases import (
    METHODS,
    AttachReply,
    DoneReply,
    InitReply,
    NodesReply,
    PlanReply,
    PlansReply,
    ReportReply,
    ShutdownReply,
    UseCases,
    WatchReply,
)
from orchestra.views import (
    AgentCounts,
    AgentView,
    ApiLimits,
    AttemptView,
    EventView,
    HealthCheck,
    NodeView,
    PlanLine,
    PlanView,
    StatusView,
    TaskCounts,
    TaskDetail,
    TaskView,
)

MOMENT_MS: Final = 1_700_000_000_000


def make_status(status: str = "running", **changes: Any) -> StatusView:
    """Returns the status of a small healthy orchestra."""
    view = StatusView(status, "healthy", AgentCounts(2, 2, 1, 1, 0), ApiLimits("-/1000", "-/60000"), TaskCounts(1, 1, 1, 0), 12)
    return msgspec.structs.replace(view, **changes)


def make_task(name: str = "demo/a", status: str = "completed", **changes: Any) -> TaskView:
    """Returns a line of a task list."""
    view = TaskView(
        task=name,
        description="Do one thing",
        status=status,
        kind="shell",
        category="coding",
        priority="normal",
        plan=name.partition("/")[0],
        needs=(),
        agents=(1,),
        attempts=1,
        failures=0,
        queued_ms=MOMENT_MS,
        started_ms=MOMENT_MS + 10,
        ended_ms=MOMENT_MS + 1510,
        duration_ms=1500,
        estimate_ms=2000,
        rank_ms=0,
    )
    return msgspec.structs.replace(view, **changes)


def make_attempt(**changes: Any) -> AttemptView:
    """Returns an attempt that failed."""
    view = AttemptView(
        number=1,
        agent=1,
        node="local",
        status="ended",
        outcome="failed",
        reason="exit code 3",
        code=3,
        signal=None,
        assigned_ms=MOMENT_MS,
        started_ms=MOMENT_MS + 10,
        ended_ms=MOMENT_MS + 1510,
        duration_ms=1500,
        checks=(),
        tail=("first line", "last words"),
        tokens=0,
        cost_usd_micros=0,
        rss_bytes_max=0,
        folder="/somewhere",
    )
    return msgspec.structs.replace(view, **changes)


def make_detail(task: TaskView, *attempts: AttemptView) -> TaskDetail:
    """Returns everything about a task."""
    return TaskDetail(task, "it is over", attempts or (make_attempt(),), 0, ("exit 0",), 0, (), "/results")


def make_plan(status: str, *tasks: TaskView, name: str = "demo") -> PlanView:
    """Returns a plan at one moment."""
    closed = 0 if status == "running" else MOMENT_MS + 2000
    return PlanView(name, name, status, "plan.yaml", MOMENT_MS, closed, MOMENT_MS + 2000, tasks, tuple(task.task for task in tasks))


def make_agent(number: int = 1, **changes: Any) -> AgentView:
    """Returns an idle agent."""
    view = AgentView(number, f"agent-{number:03}", "any", "local", "idle", None, 0, MOMENT_MS, 3, 0, 4000, 4711)
    return msgspec.structs.replace(view, **changes)


def make_node(**changes: Any) -> NodeView:
    """Returns a healthy node."""
    return msgspec.structs.replace(NodeView("local", "healthy", 2, 2, 10.0, 20.0, True, "miyabi-orchestra-local"), **changes)


def make_offer(**changes: Any) -> KeyOffer:
    """Returns the key of a machine that is not known yet."""
    offer = KeyOffer(
        name="majin",
        where="majin.example:22",
        kind="ssh-ed25519",
        fingerprint="SHA256:" + "A" * 43,
        state="new",
        detail="",
        file="/home/me/.ssh/known_hosts",
        line="majin.example ssh-ed25519 AAAA",
    )
    return msgspec.structs.replace(offer, **changes)


def make_watch(seq: int, *events: e.Event) -> WatchReply:
    """Returns a reply whose last event has number `seq`."""
    first = seq - len(events) + 1
    views = [EventView(first + at, MOMENT_MS + 10 * (first + at), msgspec.Raw(msgspec.json.encode(each))) for at, each in enumerate(events)]
    return WatchReply(seq, tuple(views))


def make_cost(by: str = "task", *rows: CostRow, source: str = "gateway", live: bool = True, now_ms: int = MOMENT_MS) -> CostReply:
    """Returns what was spent, with a total that adds up."""
    total = total_of(rows, counted=source != "agents")
    return CostReply(by, source, f"from {source}", live, now_ms, rows, total, prices_made="2026-11-21")


def make_cost_row(name: str, settled: int | None = 1_500_000, **changes: Any) -> CostRow:
    """Returns a row of ten requests of which the programs said as much as was settled."""
    row = CostRow(name, 10, 100, 200, 3000, 400, settled, settled, 0, compared_attempts=1)
    return msgspec.structs.replace(row, **changes)


DEFAULTS: Final[Mapping[str, object]] = {
    "status": make_status(),
    "init": InitReply("initialized", {"local": "s"}, {"total": 2, "local": 2}, 2, "healthy"),
    "submit_plan": PlanReply("demo", 1, False),
    "plans": PlansReply((PlanLine("demo", "demo", "running", 1, 1, 0, MOMENT_MS, 0),)),
    "report": ReportReply("demo", "/r/demo.html", "/r/demo.md"),
    "shutdown": ShutdownReply("shutdown_initiated", 0, "2026-01-01T00:00:00Z"),
    "nodes": NodesReply((make_node(),)),
    "attach": AttachReply(("tmux", "attach")),
    "type_text": DoneReply(),
    "restart_agent": DoneReply(),
    "cost": make_cost(),
    "budgets": BudgetsReply("gateway", "from gateway", ()),
}


class FakeUseCases:
    """Implements `UseCases` by script; `calls` has what was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, msgspec.Struct]] = []
        self._answers: dict[str, list[object]] = {name: [answer] for name, answer in DEFAULTS.items()}
        self._news: dict[str, asyncio.Event] = {}

    def on(self, method: str, *answers: object) -> FakeUseCases:
        """Scripts a method."""
        assert method in METHODS, method
        self._answers[method] = list(answers)
        return self

    @property
    def use_cases(self) -> UseCases:
        """Itself, as what it stands in for."""
        return cast("UseCases", self)

    def asked(self, method: str) -> list[Any]:
        """Returns the parameters a method was called with, call by call."""
        return [params for name, params in self.calls if name == method]

    async def wait_asked(self, method: str, times: int = 1) -> None:
        """Returns when a method has been called that often."""
        while len(self.asked(method)) < times:
            await self._news.setdefault(method, asyncio.Event()).wait()

    def __getattr__(self, name: str) -> Any:
        if name not in METHODS:
            raise AttributeError(name)

        async def answer(params: msgspec.Struct) -> object:
            assert isinstance(params, METHODS[name].params), f"{name} takes {METHODS[name].params.__name__}, not {type(params).__name__}"
            self.calls.append((name, params))
            self._news.pop(name, asyncio.Event()).set()
            return await self._answer(name, params)

        return answer

    async def _answer(self, name: str, params: msgspec.Struct) -> object:
        script = self._answers.get(name)
        assert script, f"nothing is scripted for {name}"
        found = script.pop(0) if len(script) > 1 else script[0]
        if callable(found) and not isinstance(found, msgspec.Struct | type | BaseException):
            found = cast("Callable[[msgspec.Struct], object]", found)(params)
        if isawaitable(found):
            found = await found
        if isinstance(found, BaseException):
            raise found
        return found


class FakeHosted:
    """A coordinator in this process that ends when it is told to, by `end` or by the first shutdown."""

    def __init__(self, fake: FakeUseCases) -> None:
        self.use_cases: UseCases = fake.use_cases
        self.detached = False
        self.failure: Exception | None = None
        self._fake = fake
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Lets `wait_ended` return."""
        self._ended.set()

    async def wait_ended(self) -> None:
        """Returns when a shutdown was asked for, or `end` was called; raises `failure` then, if there is one."""
        asked = asyncio.create_task(self._fake.wait_asked("shutdown"))
        told = asyncio.create_task(self._ended.wait())
        try:
            await asyncio.wait((asked, told), return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            told.cancel()
        if self.failure is not None:
            raise self.failure

    async def detach(self) -> None:
        """Notes it."""
        self.detached = True


class FakeCare:
    """A ledger with ten events, and what is wrong with it."""

    def __init__(self) -> None:
        self.problems: tuple[str, ...] = ()
        self.lost_first = 0
        self.repairs: list[bool] = []

    def verify(self) -> VerifyReport:
        """Returns what was scripted."""
        return VerifyReport(10, b"\x01\x02", MOMENT_MS, 10, 10, self.problems)

    def plan_repair(self) -> RepairPlan:
        """Returns what was scripted."""
        return RepairPlan(Mark(10, MOMENT_MS, 1, b"\x01\x02"), self.lost_first, 12 if self.lost_first else 0, self.problems)

    def repair(self, plan: RepairPlan, *, accept_data_loss: bool) -> Path | None:
        """Notes it."""
        self.repairs.append(accept_data_loss)
        return Path("/damaged")

    def export(self, out: Path) -> int:
        """Claims to have written ten events."""
        return 10

    def show(self, after: int, limit: int) -> Iterator[EventView]:
        """Yields two events."""
        yield from make_watch(after + 2, e.WorkBegan(), e.Terminated()).events[:limit]


class FakeWiring:
    """Stands in for `orchestra.bootstrap`; `log` has what was called, in order."""

    def __init__(self, fake: FakeUseCases | None = None, *, running: bool = True) -> None:
        self.fake = fake or FakeUseCases()
        self.running = running
        self.care = FakeCare()
        self.checks: tuple[HealthCheck, ...] = (HealthCheck("tmux", True, "3.4"),)
        self.hosted: list[FakeHosted] = []
        self.make_hosted: Callable[[FakeUseCases], FakeHosted] = FakeHosted
        self.leftovers = False
        self.settings = Settings()
        self.nodes: tuple[NodeSpec, ...] = (
            NodeSpec(NodeId("mugen"), host="mugen.example"),
            NodeSpec(NodeId("majin"), host="majin.example"),
        )
        self.node_checks: dict[str, NodeCheck] = {}
        self.node_kinds: dict[str, NodeKinds] = {}
        self.offer = make_offer()
        self.log: list[str] = []

    def load_settings(self, root: Path, flags: Mapping[str, str], /) -> Settings:
        """Returns what was scripted, by default the defaults."""
        return self.settings

    def task_defaults(self, settings: Settings, /) -> TaskDefaults:
        """Returns what tasks get when nobody sets anything."""
        return TaskDefaults()

    @asynccontextmanager
    async def connect(self, root: Path, /) -> AsyncIterator[UseCases]:
        """Gives the fake, if one runs."""
        self.log.append(f"connect {root}")
        if not self.running:
            raise CoordinatorUnreachable("no orchestra is running for this root", hint="start one: `orchestra up`, or name its --root")
        yield self.fake.use_cases

    def open_blank(self, root: Path, settings: Settings, /) -> UseCases:
        """Gives the fake, which nobody else runs."""
        self.log.append(f"blank {root}")
        return self.fake.use_cases

    def coordinator_running(self, root: Path, /) -> bool:
        """Tells what was scripted."""
        return self.running

    @asynccontextmanager
    async def host(self, root: Path, settings: Settings, /) -> AsyncIterator[FakeHosted]:
        """Hosts the fake."""
        self.log.append(f"host {root}")
        self.hosted.append(self.make_hosted(self.fake))
        yield self.hosted[-1]

    async def start_in_window(self, root: Path, settings: Settings, /) -> None:
        """Makes it run."""
        self.log.append(f"start {root}")
        self.running = True

    async def abandon(self, root: Path, /) -> None:
        """Makes it run no more."""
        self.log.append(f"abandon {root}")
        self.running = False

    async def wait_window_gone(self, root: Path, /) -> None:
        """Notes it."""
        self.log.append(f"window gone {root}")

    async def end_leftovers(self, root: Path, settings: Settings, /) -> bool:
        """Tells whether `leftovers` are scripted."""
        return self.leftovers

    def serve_forever(self, root: Path, settings: Settings, init: InitParams | None, /) -> int:
        """Notes it."""
        said = {} if init is None else {name: value for name, value in msgspec.structs.asdict(init).items() if value}
        self.log.append(f"serve {root} {said}")
        return 0

    def supervise(self, root: Path, settings: Settings, argv: Sequence[str], offered: Path | None, /) -> int:
        """Notes it."""
        self.log.append(f"supervise {' '.join(argv[1:])}")
        return 0

    def doctor(self, root: Path, settings: Settings, /) -> tuple[HealthCheck, ...]:
        """Returns what was scripted."""
        return self.checks

    def known_nodes(self, root: Path, settings: Settings, /) -> tuple[NodeSpec, ...]:
        """Returns what was scripted."""
        return self.nodes

    async def check_nodes(self, root: Path, settings: Settings, specs: Sequence[NodeSpec], /) -> tuple[NodeCheck, ...]:
        """Returns what was scripted for each, by default that all is well."""
        self.log.append(f"check {' '.join(spec.id for spec in specs)}")
        well = (Finding("python", True, "3.12"),)
        return tuple(self.node_checks.get(spec.id, NodeCheck(spec.id, spec.host, True, well)) for spec in specs)

    async def kinds_on(self, root: Path, settings: Settings, specs: Sequence[NodeSpec], /, *, versions: bool) -> tuple[NodeKinds, ...]:
        """Returns what was scripted for each, by default that nothing is there."""
        self.log.append(f"kinds {' '.join(spec.id for spec in specs)}")
        return tuple(self.node_kinds.get(spec.id, NodeKinds(spec.id, "", {}, {})) for spec in specs)

    async def offered_key(self, root: Path, settings: Settings, name: str, /) -> KeyOffer:
        """Returns the scripted key."""
        return msgspec.structs.replace(self.offer, name=name)

    def trust_key(self, offer: KeyOffer, /, *, replace: bool) -> bool:
        """Notes it; refuses as the real one does."""
        self.log.append(f"trust {offer.name} {offer.fingerprint} {replace}")
        if offer.state == "known":
            return False
        if offer.state == "changed" and not replace:
            raise HostKeyRefused(offer.detail, hint="ask whoever runs that machine")
        return True

    def ledger_care(self, root: Path, /) -> FakeCare:
        """Returns the care."""
        return self.care

    def backup(self, root: Path, target: Path, /) -> int:
        """Claims to have copied ten events."""
        self.log.append(f"backup {target}")
        return 10

    def restore(self, archive: Path, root: Path, /, *, force: bool) -> Path | None:
        """Notes it."""
        self.log.append(f"restore {archive} {root} {force}")
        return Path("/replaced") if force else None
