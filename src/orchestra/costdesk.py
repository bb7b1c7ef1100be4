"""The use cases about cost and limits: what was spent, what may be, and what a plan will take.

Figures come from the gateway while it runs, from its books when it does not, and where no gateway counted from what the agents' programs said.
Every answer says which.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from orchestra.agents.prompt import wish
from orchestra.answers import agent_id, find_plan, resolve_task
from orchestra.core.graph import topological_order
from orchestra.core.model import ANY_KIND, AgentStatus, Payload, TaskDefaults, TaskSpec
from orchestra.core.state import State
from orchestra.costviews import (
    BudgetsReply,
    BudgetView,
    CostReply,
    EstimateCostReply,
    EstimateReply,
    LimitsReply,
    LimitView,
    ProviderLoad,
    Range,
    Settled,
    TaskEstimate,
)
from orchestra.engine.loop import Loop
from orchestra.errors import BadInput, OrchestraError, PortFailed
from orchestra.gateway.config import GatewayConfig, load_config
from orchestra.gateway.pricing import load_prices
from orchestra.gateway.reading import JOURNAL as JOURNAL_FILE
from orchestra.gateway.reading import budget_rows, day_name, day_number, read_books, usage_rows
from orchestra.ids import AttemptId, PlanId, TaskId, parse_task_id
from orchestra.intake.planfile import parse_plan
from orchestra.intake.request import EstimateCostParams
from orchestra.metering.books import ALL, BUDGETED, Books, day_of
from orchestra.metering.forecast import DEFAULT_MODELS, NO_MODEL, PROMPT, Bounds, Forecast, History, Paid, added, forecast, of_tokens
from orchestra.metering.prices import Prices, Quote
from orchestra.quantity import USD_MICROS
from orchestra.scheduling.rank import estimate_ms, upward_ranks
from orchestra.spending import (
    BY,
    UNFILTERED,
    cost_rows,
    facts_of,
    gathered,
    limit_rows,
    provider_loads,
    read_settled,
    total_of,
)
from orchestra.usecases import CostParams, Empty, EstimateParams, SetBudgetParams

log = logging.getLogger(__name__)

GATEWAY: Final = "gateway"
JOURNAL: Final = "journal"
AGENTS: Final = "agents"
NOTES: Final = {
    GATEWAY: "settled by the gateway",
    JOURNAL: "the gateway does not run: from its books, as they stand",
    AGENTS: "no gateway counted here: what the agents' programs said",
}
NO_GATEWAY: Final = "no gateway runs for this orchestra"
SINGLY_MAX: Final = 20
"""So many attempts are asked for one by one; the books hold twenty thousand."""
KIND_FALLBACK: Final = "claude"

Ask = Callable[[str, dict[str, Any]], Awaitable[Any]]
Stamp = tuple[int, int, int]
"""What changes with a file's content."""


class CostOptions(msgspec.Struct, frozen=True):
    """What the desk takes from the settings."""

    root: str
    kind_default: str
    agents_default: int
    task_defaults: TaskDefaults
    models: Mapping[str, str] = {}
    """Agent kind -> the model that the settings name for it."""
    day_budget_usd_micros: int = -1
    """Of a day where the gateway's own file names none; negative is none. It is not in the books."""
    gateway_file: str = ""
    """The gateway's own file, where it is not the one that is made of the settings."""

    @property
    def gateway_folder(self) -> Path:
        """Where the orchestra's gateway keeps its things."""
        return Path(self.root) / "gateway"


class CostDesk:
    """One per coordinator, and one per ledger that is read without one.

    Args:
        loop: Where the state is asked.
        live: Tells whether a coordinator runs.
        ask: Asks the running gateway, and raises PortFailed if none runs; None where there is none.
        options: From the settings.
    """

    def __init__(self, loop: Loop, live: Callable[[], bool], ask: Ask | None, options: CostOptions) -> None:
        self._loop = loop
        self._live = live
        self._ask = ask
        self._options = options
        self._read: tuple[Stamp | None, Books | None] = (None, None)
        self._known: tuple[Stamp | None, GatewayConfig | None, Prices] | None = None
        self.loads: tuple[ProviderLoad, ...] = ()
        """How far each upstream's limits are used, as of the last look."""
        self.whole: Settled | None = None
        """What the gateway settled in all, as of the last look; None where none counted."""

    # --- where figures come from -------------------------------------------------------------------------------------

    async def _answer(self, method: str, params: dict[str, Any], offline: Callable[[Books], Any]) -> tuple[str, Any]:
        if self._ask is not None:
            try:
                return GATEWAY, await self._ask(method, params)
            except PortFailed:
                pass  # it does not run; its books may be there
        books = await self._books()
        return (AGENTS, None) if books is None else (JOURNAL, offline(books))

    async def _books(self) -> Books | None:
        """Reads the books again only if they have changed."""
        folder = self._options.gateway_folder / "books"
        stamp = _stamp(folder / JOURNAL_FILE)
        if stamp is None or stamp != self._read[0]:
            config = self._written()[0]
            budget = -1 if config is None else config.day_budget_usd_micros
            budget = budget if budget >= 0 else self._options.day_budget_usd_micros
            self._read = stamp, await asyncio.to_thread(read_books, folder, budget)
        return self._read[1]

    def _written(self) -> tuple[GatewayConfig | None, Prices]:
        """Returns the gateway's file, if there is one, and the prices that hold by it; both are read again only if it has changed."""
        own = self._options.gateway_file
        path = Path(own) if own else self._options.gateway_folder / "gateway.json"
        stamp = _stamp(path)
        if self._known is None or stamp != self._known[0]:
            config = None if stamp is None else load_config(path, {})
            self._known = stamp, config, load_prices(config)
        return self._known[1:]

    async def _usage(self, by: str, name: str = "") -> tuple[str, Any]:
        return await self._answer("usage", {"by": by, "name": name}, lambda books: {"usage": usage_rows(books, by, name)})

    async def _settled(self, by: str, name: str = "") -> dict[str, Settled] | None:
        _, answer = await self._usage(by, name)
        return None if answer is None else read_settled(answer)

    async def settled_attempts(self, attempts: Sequence[AttemptId]) -> dict[str, Settled]:
        """Returns what the gateway settled for attempts, as far as it counted anything and can be asked. There may be others among them."""
        try:
            if len(attempts) > SINGLY_MAX:
                return await self._settled("attempt") or {}
            found = [await self._settled("attempt", str(attempt)) for attempt in attempts]
            return {name: settled for each in found if each for name, settled in each.items()}
        except OrchestraError as error:
            log.warning("cost-not-known", extra={"reason": str(error)})
            return {}

    async def settled_of(self, task: TaskId) -> Settled | None:
        """Returns what the gateway settled for a task; None if it counted nothing for it, or cannot be asked."""
        try:
            found = await self._settled("task", task)
        except OrchestraError as error:
            log.warning("cost-not-known", extra={"task": task, "reason": str(error)})
            return None
        settled = None if found is None else found.get(task)
        return settled if settled is not None and settled.requests else None

    async def look(self) -> None:
        """Brings the figures that are shown all the time up to date."""
        try:
            found = await self._settled(ALL)
            whole = None if found is None else found.get("")
            self.whole = whole if whole is not None and whole.requests else None
            _, limits = await self._answer("limits", {}, lambda books: {"lanes": []})
            self.loads = () if limits is None else provider_loads(limit_rows(limits))
        except OrchestraError as error:
            log.info("no-cost-figures", extra={"reason": str(error)})

    # --- what was spent ----------------------------------------------------------------------------------------------

    async def cost(self, params: CostParams) -> CostReply:
        """Returns what was spent, by one of `BY`."""
        if params.by not in BY:
            raise BadInput(f"nothing is counted by {params.by[:40]!r}", field="by", hint="use " + ", ".join(BY))
        if params.plan is not None and params.by in UNFILTERED:
            raise BadInput(f"a plan's cost is not told apart by {params.by}", field="by", hint="use task, agent or attempt")
        plan = None if params.plan is None else await self._loop.ask(lambda state: find_plan(state, params.plan).id)
        name = await self._name(params)
        source, answer = await self._usage(params.by)
        counted = answer is not None
        scope, attempts, whole = None, None, None
        if counted:
            scope = read_settled(answer)
            attempts = scope if params.by == "attempt" else await self._settled("attempt") if params.compare or plan is not None else None
            whole = (await self._settled(ALL) or {}).get("")
        told = params.compare or plan is not None or not counted
        facts = await self._loop.ask(lambda state: list(facts_of(state, plan))) if told else []
        if plan is not None:
            scope = None if attempts is None else gathered(facts, params.by, attempts)
        rest = None if plan is not None or name else whole
        rows = await asyncio.to_thread(cost_rows, params.by, facts, scope, attempts, rest)  # a second for a hundred thousand attempts
        if name:
            rows = [row for row in rows if row.name == name]
        shown = rows[: params.limit] if params.limit else rows
        return CostReply(
            by=params.by,
            source=source,
            note=NOTES[source],
            live=self._live(),
            now_ms=self._loop.now_ms(),
            rows=tuple(shown),
            total=total_of(rows, counted=counted),
            left_out=len(rows) - len(shown),
            prices_made=self._written()[1].made if counted else "",
        )

    async def _name(self, params: CostParams) -> str:
        """Returns the full name of what is asked for by a short one."""
        wanted = params.name or ""
        match params.by if wanted else "":
            case "task":
                return await self._loop.ask(lambda state: resolve_task(state, parse_task_id(wanted, field="name")))
            case "plan":
                return await self._loop.ask(lambda state: find_plan(state, wanted).id)
            case "agent":
                return str(agent_id(wanted))
            case "day":
                day_number(wanted, "name")
        return wanted

    async def limits(self) -> LimitsReply:
        """Returns the limits as they stand, or as they are written where no gateway runs."""
        if self._ask is not None:
            try:
                answer = await self._ask("limits", {})
                note = "as they stand, those learned from the providers included"
                return LimitsReply(GATEWAY, note, limit_rows(answer), tuple(answer["upstreams_down"]))
            except PortFailed:
                pass
        config = self._written()[0]
        if config is None:
            return LimitsReply("", f"{NO_GATEWAY}: agents meet the providers' limits by themselves", ())
        note = "the gateway does not run: as written in its file; what it learns from the providers is known while it runs"
        return LimitsReply("configuration", note, tuple(written_limits(config)))

    # --- budgets -----------------------------------------------------------------------------------------------------

    async def budgets(self) -> BudgetsReply:
        """Returns the budgets there are, and how far each is used."""
        now_ms = self._loop.now_ms()
        source, answer = await self._answer("budgets", {}, lambda books: {"budgets": budget_rows(books, now_ms)})
        rows = [] if answer is None else answer["budgets"]
        note = NO_GATEWAY if answer is None else NOTES[source]
        return BudgetsReply(source, note, msgspec.convert(rows, tuple[BudgetView, ...]))

    async def set_budget(self, params: SetBudgetParams) -> BudgetsReply:
        """Sets or lifts a budget; the gateway keeps it from the next request on."""
        if params.scope not in BUDGETED:
            raise BadInput(f"{params.scope[:40]!r} has no budget", field="scope", hint="use " + ", ".join(BUDGETED))
        if self._ask is None:
            raise PortFailed(NO_GATEWAY, hint="budgets are kept by the gateway while it runs")
        name = await self._loop.ask(functools.partial(self._budgeted, params))
        try:
            await self._ask("set_budget", {"scope": params.scope, "name": name, "usd_micros": max(-1, params.usd_micros)})
        except PortFailed as error:
            if not self._live():
                raise PortFailed(NO_GATEWAY, hint="start the orchestra: `orchestra up`") from error
            raise
        return await self.budgets()

    def _budgeted(self, params: SetBudgetParams, state: State) -> str:
        if params.scope == "day":
            day = params.name or _today(self._loop.now_ms())
            day_number(day, "name")
            return day
        if not params.name:
            raise BadInput("nothing says whose budget", field="name", hint=f"name the {params.scope}")
        if params.scope == "plan":
            return find_plan(state, params.name).id
        if params.scope == "task":
            return resolve_task(state, parse_task_id(params.name, field="name"))
        return str(state.agent(agent_id(params.name)).id)

    # --- what it will take -------------------------------------------------------------------------------------------

    async def estimate(self, params: EstimateParams) -> EstimateReply:
        """Returns what a plan is thought to take, task by task."""
        document = parse_plan(params.text, source=params.source, directory=params.directory, defaults=self._options.task_defaults)
        specs = document.specs(PlanId(document.name))
        prices = self._written()[1]
        paid = await self._paid()

        def answer(state: State) -> EstimateReply:
            quote = functools.partial(self._quote, prices)
            history = History(state, paid, quote)
            found = {spec.id: forecast(spec, history, quote, estimate_ms(state, spec)) for spec in specs}
            groups = sum(group.count for group in document.agents)
            agents = params.agents or _fleet(state) or groups or self._options.agents_default
            return EstimateReply(
                plan=document.name,
                tasks=tuple(_task_estimate(spec, found[spec.id]) for spec in specs),
                cost_usd_micros=_range(added(each.cost_usd_micros for each in found.values())),
                tokens=_range(added(each.tokens for each in found.values())),
                duration_ms=_range(_makespan(specs, found, agents)),
                agents=agents,
                samples=sum(each.samples > 0 for each in found.values()),
                prices_made=prices.made,
            )

        return await self._loop.ask(answer)

    async def estimate_cost(self, params: EstimateCostParams) -> EstimateCostReply:
        """Returns what a task is thought to cost with that many agents, each of which uses `estimated_tokens` if that is said."""
        prices = self._written()[1]
        paid = await self._paid()

        def answer(state: State) -> EstimateCostReply:
            quote = functools.partial(self._quote, prices)
            history = History(state, paid, quote)
            spec = TaskSpec(TaskId("estimate"), params.task, Payload("analysis", params.task), kind=self._kind(history))
            if params.estimated_tokens is None:
                found = forecast(spec, history, quote, estimate_ms(state, spec))
            else:
                nearest = history.nearest(spec)
                found = of_tokens(params.estimated_tokens, spec.kind, None if nearest is None else nearest[0], quote(spec))
            low, likely, high = (cost * params.agents for cost in found.cost_usd_micros)
            rounds = -(-params.agents // max(1, _fleet(state) or params.agents))
            seconds = -(-found.duration_ms[1] * rounds // 1000)
            return EstimateCostReply(likely / USD_MICROS, seconds, low / USD_MICROS, high / USD_MICROS, f"{found.basis}; kind {spec.kind}")

        return await self._loop.ask(answer)

    def _kind(self, history: History) -> str:
        """Returns the kind a task in words goes to: the settings', else the one that does most of the work here."""
        default = self._options.kind_default
        return default if default not in (ANY_KIND, *NO_MODEL) else history.busiest_kind() or KIND_FALLBACK

    async def _paid(self) -> Callable[[AttemptId], Paid | None]:
        settled = await self._settled("attempt") or {}

        def paid(attempt: AttemptId) -> Paid | None:
            found = settled.get(str(attempt))
            return None if found is None or not found.requests else Paid(found.tokens, found.cost_usd_micros)

        return paid

    def _quote(self, prices: Prices, spec: TaskSpec) -> Quote:
        provider, usual = DEFAULT_MODELS.get(spec.kind, ("", ""))
        try:
            asked = wish(spec, "model")
        except BadInput:
            asked = ""  # it will be refused when it is to run
        model = asked or self._options.models.get(spec.kind, "") or usual
        named, slash, short = model.partition("/")
        provider, model = (named, short) if slash else (provider, model)
        return prices.quote(provider, model, PROMPT.prompt_tokens, day_of(self._loop.now_ms()))


class CostUseCases:
    """The part of `UseCases` that a cost desk answers."""

    costs: CostDesk

    async def cost(self, params: CostParams) -> CostReply:
        return await self.costs.cost(params)

    async def limits(self, params: Empty) -> LimitsReply:
        return await self.costs.limits()

    async def budgets(self, params: Empty) -> BudgetsReply:
        return await self.costs.budgets()

    async def set_budget(self, params: SetBudgetParams) -> BudgetsReply:
        return await self.costs.set_budget(params)

    async def estimate(self, params: EstimateParams) -> EstimateReply:
        return await self.costs.estimate(params)

    async def estimate_cost(self, params: EstimateCostParams) -> EstimateCostReply:
        return await self.costs.estimate_cost(params)


def _stamp(path: Path) -> Stamp | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def written_limits(config: GatewayConfig) -> list[LimitView]:
    """Returns the limits that a gateway's file names."""
    places = [
        (name, account_name, limits)
        for name, upstream in config.upstreams.items()
        for account_name, limits in [("", upstream.limits), *((each, part.limits) for each, part in upstream.accounts.items())]
    ]
    return [
        LimitView(upstream, account, model_class, dimension, amount, None, None, None)
        for upstream, account, limits in places
        for model_class, dimensions in limits.items()
        for dimension, amount in dimensions.items()
    ]


def _today(now_ms: int) -> str:
    return day_name(str(day_of(now_ms)))


def _fleet(state: State) -> int:
    return sum(agent.status in (AgentStatus.IDLE, AgentStatus.BUSY) for agent in state.agents.values())


def _range(values: Bounds) -> Range:
    return Range(*values)


def _task_estimate(spec: TaskSpec, found: Forecast) -> TaskEstimate:
    return TaskEstimate(
        task=spec.id,
        kind=spec.kind,
        category=spec.category,
        cost_usd_micros=_range(found.cost_usd_micros),
        tokens=_range(found.tokens),
        duration_ms=_range(found.duration_ms),
        basis=found.basis,
        samples=found.samples,
        model="" if found.quote is None else found.quote.model,
        priced=found.quote is None or found.quote.known,
    )


def _makespan(specs: tuple[TaskSpec, ...], found: Mapping[TaskId, Forecast], agents: int) -> Bounds:
    """Returns how long the plan takes at least with so many agents: its longest path, or all its work shared out."""
    ordered = topological_order({spec.id: spec for spec in specs})

    def bound(place: int) -> int:
        ranks = upward_ranks(ordered, lambda spec: found[spec.id].duration_ms[place])
        work = sum(found[spec.id].duration_ms[place] * min(spec.replicas, agents) for spec in specs)
        return max(max(ranks.values(), default=0), work // agents)

    return bound(0), bound(1), bound(2)
