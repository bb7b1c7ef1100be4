"""The orchestra's own gateway: started when the first attempt needs it, watched, started again when it dies, ended with the orchestra.

It is a process of its own that outlives the coordinator, as the agents that speak to it do; the next coordinator finds it by its socket. What it tells is
brought into the ledger and into what the scheduler may start. Where it is not, nothing that needs it is started, and nothing fails for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from orchestra.clock import Clock
from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.model import PlanStatus, Priority, TaskSpec
from orchestra.core.state import State
from orchestra.engine.duties import PassRequest
from orchestra.engine.kernel import Happened
from orchestra.engine.loop import Loop
from orchestra.errors import BadInput, OrchestraError, PortFailed
from orchestra.gateway.admin import ask_admin
from orchestra.ids import AttemptId, PlanId, TaskId, parse_attempt_id
from orchestra.metering.alarms import Fact
from orchestra.metering.outlook import PARK, PLAN, STOP, TASK, Outlook, Ruling, Use

log = logging.getLogger(__name__)

LOOK_MS: Final = 1_000
"""How often limits and budgets are asked for; notices come at once."""
LOOK_MS_MIN: Final = 250
"""Between two looks, however much there is to notice."""
START_MS: Final = 20_000
POLL_MS: Final = 50
AGAIN_MS: Final = (200, 1_000, 5_000, 15_000)
END_MS: Final = 10_000
TOKEN_MARGIN_MS: Final = 900_000
"""A token is good for longer than its attempt may run: tools and checks of it may call the model too."""
TOKEN_MS_MAX: Final = 30 * 86_400_000
NO_BUDGETS: Final[Mapping[str, Any]] = {"budgets": ()}


class Started(Protocol):
    """A gateway's process that was started."""

    def ended(self) -> str | None:
        """Returns its last words if it has ended."""
        ...


class GatewayOptions(msgspec.Struct, frozen=True):
    """What of the settings concerns the orchestra's gateway."""

    upstreams: Mapping[str, str]
    """Name of an upstream -> the API it speaks."""
    kinds: Mapping[str, tuple[str, ...]]
    """Agent kind -> the APIs that it reaches through the gateway."""
    task_budget_usd_micros: int = 0
    """Of a task that names none; 0 is none."""
    on_spent: str = "pause"
    """What happens when a budget is spent: `pause`, `park`, `stop`."""
    models: Mapping[str, str] = {}
    """Agent kind -> the model that the settings name for it."""
    classes: Mapping[str, Mapping[str, str]] = {}
    """API -> pattern of model names -> class, as the gateway's file has them."""


class Gatekeeper:
    """One per coordinator that has a gateway.

    Args:
        socket: Where the gateway's administration is served.
        start: Starts the gateway's process; it answers on the socket when it is ready.
    """

    def __init__(self, loop: Loop, clock: Clock, socket: Path, start: Callable[[], Awaitable[Started]], options: GatewayOptions) -> None:
        self._loop = loop
        self._clock = clock
        self._socket = socket
        self._start = start
        self._options = options
        self._outlook = Outlook(options.kinds, options.upstreams, options.on_spent, models=options.models, classes=options.classes)
        self._wanted = asyncio.Event()
        self._decided = asyncio.Event()
        """Whether it runs is known: `_port`, or `_trouble`."""
        self._trouble = ""
        self._port = 0
        self._over: asyncio.Queue[AttemptId | list[TaskId]] = asyncio.Queue()
        """Attempts whose tokens, and tasks whose budgets, are needed no more."""
        self._unrevoked = True
        """Attempts may have ended of which the gateway was not told."""
        self._ending = False
        self._process: Started | None = None
        loop.listen(self._on_events)

    # --- asked by others ---------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """Where it listens on this machine; 0 while it does not run."""
        return self._port

    def use_of(self, api: str) -> Use:
        """Returns how much of an API's limits is used."""
        return self._outlook.use.get(api, Use())

    def ruling(self, spec: TaskSpec, attempt: AttemptId, reason: str) -> Ruling | None:
        """Returns what a failure is in truth, by what the gateway saw; None where the agent's word stands."""
        return self._outlook.ruling(spec, attempt, reason, self._clock.steady_ms())

    async def ask(self, method: str, params: dict[str, Any]) -> Any:
        """Returns what the gateway's administration answers.

        Raises:
            PortFailed: It does not run.
        """
        return await ask_admin(self._socket, method, params)

    async def issue(self, requests: Sequence[PassRequest]) -> tuple[int, Mapping[AttemptId, str]]:
        """Returns the port and a token for each attempt; starts the gateway if it does not run.

        Raises:
            PortFailed: It cannot be started, or does not answer.
        """
        self._wanted.set()
        try:
            async with asyncio.timeout(START_MS / 1000):
                await self._decided.wait()
        except TimeoutError:
            raise PortFailed("the gateway does not answer", hint="see logs/gateway.log") from None
        if self._trouble:
            raise PortFailed(self._trouble, hint="see logs/gateway.log")
        tokens = {request.attempt: (await self.ask("issue_token", self._token(request)))["token"] for request in requests}
        return self._port, tokens

    def _token(self, request: PassRequest) -> dict[str, Any]:
        spec = request.spec
        budget = spec.cost_usd_micros_max or self._options.task_budget_usd_micros
        passes = self._options.on_spent == PARK and spec.priority is Priority.CRITICAL
        checks_ms = sum(check.timeout_ms for check in spec.checks)
        return {
            "attempt": str(request.attempt),
            "task": spec.id,
            "agent": str(request.agent),
            "plan": spec.plan or "",
            "priority": int(spec.priority),
            "free_of_day": passes,
            "free_of": ([PLAN] if spec.cost_usd_micros_max else [PLAN, TASK]) if passes else [],
            "expires_in_ms": min(spec.timeout_ms + checks_ms + TOKEN_MARGIN_MS, TOKEN_MS_MAX),
            "budgets": {"task": budget} if budget else {},
            "keep_budgets": True,  # somebody may have raised it since the last attempt
        }

    # --- its life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keeps it running from the first need of it until cancelled."""
        if self._socket.exists():
            self._wanted.set()  # one that an earlier coordinator started
        else:
            self._loop.kernel.let_in(self._outlook.gate_unstarted())
        await self._wanted.wait()
        failures = 0
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tidy())
            while True:
                try:
                    await self._watch()
                except PortFailed as error:
                    log.info("gateway-away", extra={"reason": str(error)})
                if self._ending:
                    return
                self._port = 0
                self._decided.clear()
                self._pause("the gateway is being started")
                self._trouble = await self._begin()
                if not self._trouble:
                    failures = 0
                    continue
                log.error("gateway-failed", extra={"reason": self._trouble})
                self._pause(self._trouble)
                self._decided.set()
                await self._clock.sleep_ms(AGAIN_MS[min(failures, len(AGAIN_MS) - 1)])
                failures += 1

    def _pause(self, why: str) -> None:
        self._outlook.away(why, self._clock.steady_ms())
        self._let_in()

    def _let_in(self) -> None:
        self._loop.kernel.let_in(self._outlook.gate(self._clock.steady_ms()))

    async def _begin(self) -> str:
        """Starts it and waits until it answers; returns why it does not, or nothing."""
        if self._process is not None:
            self._process.ended()  # or it would stay in the table of processes
        try:
            process = self._process = await self._start()
        except OrchestraError as error:
            return f"the gateway cannot be started: {error}"
        deadline_ms = self._clock.steady_ms() + START_MS
        while self._clock.steady_ms() < deadline_ms:
            words = process.ended()
            if words is not None:
                return f"the gateway does not start: {words or 'it said nothing'}"
            try:
                await self.ask("health", {})
            except PortFailed:
                await self._clock.sleep_ms(POLL_MS)
            else:
                return ""
        return f"the gateway did not answer within {START_MS // 1000} s"

    async def _watch(self) -> None:
        """Follows it as long as it answers.

        Raises:
            PortFailed: It does so no longer.
        """
        cursor = await self._loop.ask(lambda state: state.api_cursor)
        self._unrevoked = True
        budgets: Mapping[str, Any] = await self._spent_before()
        while True:
            if self._unrevoked:
                await self._find_unrevoked()
            began_ms = self._clock.steady_ms()
            health, limits = [await self.ask(method, {}) for method in ("health", "limits")]
            running = await self._loop.ask(self._at_work)
            facts = self._outlook.look(health, limits, budgets, self._clock.steady_ms(), running)
            self._port, self._trouble = health["port"], ""
            self._let_in()
            self._decided.set()
            wait_ms = LOOK_MS
            while wait_ms > 0:
                cursor = await self._listen(cursor, wait_ms, facts)
                wait_ms, facts = began_ms + LOOK_MS_MIN - self._clock.steady_ms(), []
            spent = self._outlook.spent
            budgets = await self.ask("budgets", {"of": spent}) if spent else NO_BUDGETS

    async def _listen(self, cursor: int, wait_ms: int, facts: list[Fact]) -> int:
        """Tells what the gateway noticed, after what is to be told already; returns from where on to listen next."""
        heard = await self.ask("events", {"cursor": cursor, "wait_ms": wait_ms})
        found = [self._outlook.hear(notice, self._clock.steady_ms()) for notice in heard["events"]]
        facts = [*facts, *(fact for fact in found if fact is not None)]
        self._let_in()
        await self._loop.report([c.NoteApi(fact.cursor, fact.kind, fact.facts) for fact in facts])
        for fact in facts:
            await self._react(fact)
        return int(heard["cursor"])

    async def _spent_before(self) -> Mapping[str, Any]:
        """Returns the budgets that were spent before anybody listened, of what is not over."""
        rows = (await self.ask("budgets", {"spent": True}))["budgets"]
        wanted = await self._loop.ask(lambda state: [row for row in rows if _goes_on(state, row["scope"], row["name"])])
        return {"budgets": wanted}

    def _at_work(self, state: State) -> list[TaskSpec]:
        specs = (state.tasks[attempt.task].spec for attempt, _ in state.live_attempts())
        return [spec for spec in specs if spec.kind in self._options.kinds]

    async def _react(self, fact: Fact) -> None:
        """Does what the settings ask for when a budget is spent; holding back is the outlook's part."""
        if fact.kind != "budget_spent" or self._options.on_spent != STOP:
            return
        try:
            if fact.facts["scope"] == "plan":
                await self._loop.request(c.CancelPlan(PlanId(str(fact.facts["name"])), "the budget of the plan is spent"))
            elif fact.facts["scope"] == "day":
                await self._loop.request(c.ShutDown(drain=False, graceful=False, timeout_ms=END_MS))
        except OrchestraError as error:  # it is over already
            log.info("not-stopped", extra={"reason": str(error)})

    # --- tokens ------------------------------------------------------------------------------------------------------

    def _on_events(self, state: State, happened: Sequence[Happened]) -> None:
        for each in happened:
            match each.event:
                case e.AttemptEnded(task, attempt) if state.tasks[task].spec.kind in self._options.kinds:
                    self._over.put_nowait(AttemptId(task, attempt))
                case e.TaskCompleted(task) | e.TaskFailed(task) | e.TaskCancelled(task):
                    self._outlook.forget_budget(TASK, task)
                    if isinstance(each.event, e.TaskCompleted) and state.tasks[task].spec.plan is None:
                        self._over.put_nowait([task])
                case e.PlanClosed(plan, status):
                    self._outlook.forget_budget(PLAN, plan)
                    if status is PlanStatus.COMPLETED:  # of another one tasks may be taken up again, with the budgets they were given
                        self._over.put_nowait(list(state.plans[plan].tasks))
                case _:
                    pass

    async def _tidy(self) -> None:
        while True:
            over = await self._over.get()
            try:
                if isinstance(over, list):
                    await self.ask("forget_budgets", {"scope": TASK, "names": over})
                else:
                    self._outlook.forget(over)
                    await self.ask("revoke", {"attempt": str(over)})
            except OrchestraError as error:  # tokens are looked for when the gateway is back
                self._unrevoked = True
                log.info("gateway-not-tidied", extra={"over": str(over)[:200], "reason": str(error)})

    async def _find_unrevoked(self) -> None:
        """Looks for tokens of attempts that ended while nobody could say so to the gateway."""
        self._unrevoked = False
        try:
            names = (await self.ask("tokens", {}))["attempts"]
        except PortFailed:
            raise
        except OrchestraError as error:  # a gateway that does not know the question; they end by themselves in time
            log.info("tokens-not-known", extra={"reason": str(error)})
            return
        for attempt in await self._loop.ask(lambda state: ended_of(state, names)):
            self._over.put_nowait(attempt)

    async def end(self) -> None:
        """Ends the gateway with the orchestra; what it counted stays in its books."""
        self._ending = True
        try:
            await self.ask("stop", {})
            deadline_ms = self._clock.steady_ms() + END_MS
            while self._clock.steady_ms() < deadline_ms:
                await self.ask("health", {})
                await self._clock.sleep_ms(POLL_MS)
        except PortFailed:
            if self._process is not None:
                self._process.ended()


def ended_of(state: State, names: Sequence[str]) -> list[AttemptId]:
    """Returns those of the attempts that have ended; tokens may be of others, that are not ours."""
    found = []
    for name in names:
        try:
            attempt = parse_attempt_id(name)
        except BadInput:
            continue
        task = state.tasks.get(attempt.task)
        if task is not None and any(each.number == attempt.number and each.outcome is not None for each in task.attempts):
            found.append(attempt)
    return found


def _goes_on(state: State, scope: str, name: str) -> bool:
    """Tells whether a budget is of something that may still want to use it."""
    if scope == TASK:
        task = state.tasks.get(TaskId(name))
        return task is not None and not task.over
    if scope == PLAN:
        plan = state.plans.get(PlanId(name))
        return plan is not None and plan.status is PlanStatus.RUNNING
    return True
