"""The use cases, carried out in the coordinator's process."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from orchestra.answers import (
    agent_id,
    attempt_place,
    blind_needs,
    find_plan,
    free_plan_id,
    health_checks,
    init_result,
    is_root_failure,
    latest_run,
    log_line,
    resolve_task,
    spread,
    today,
)
from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.model import ANY_KIND, AgentSpec, NodeSpec, NodeStatus, PlanStatus
from orchestra.core.review import judge_of
from orchestra.core.state import State, neighbour_hint
from orchestra.core.waiting import attempt_to_answer
from orchestra.costdesk import CostDesk, CostOptions, CostUseCases
from orchestra.engine.driver import NodeDriver
from orchestra.engine.kernel import Happened
from orchestra.errors import BadInput, NotFound, PortFailed, Refused
from orchestra.fleetdesk import DeskOptions, FleetDesk
from orchestra.ids import AgentId, AttemptId, NodeId, PlanId, TaskId, parse_task_id
from orchestra.intake.planfile import PlanDocument
from orchestra.intake.request import (
    ANSWER_BYTES_MAX,
    AnswerParams,
    CancelParams,
    InitParams,
    ScaleParams,
    ShutdownParams,
    StatusParams,
    SubmitBatchParams,
    SubmitTaskParams,
)
from orchestra.intake.roster import chosen_roster, lay_out, size_of
from orchestra.projections import rfc3339
from orchestra.scheduling.explain import explain
from orchestra.scheduling.scheduler import eta_ms, work_by_priority
from orchestra.spacedesk import SpaceDesk
from orchestra.spending import attempts_of, with_settled
from orchestra.taskdesk import TaskDesk, TaskOptions
from orchestra.usecases import (
    AgentParams,
    AgentsParams,
    AgentsReply,
    AnswerReply,
    AttachParams,
    AttachReply,
    BackupParams,
    BackupReply,
    CancelReply,
    DoneReply,
    DrainReply,
    Empty,
    ExplainReply,
    InitReply,
    LogsParams,
    LogsReply,
    MergePlanParams,
    MergePlanReply,
    NodeAddParams,
    NodeDrainParams,
    NodeParams,
    NodeRemoveParams,
    NodeReply,
    NodesReply,
    PlanNameParams,
    PlanParams,
    PlanReply,
    PlansReply,
    ReportReply,
    RetryReply,
    ScaleReply,
    ScreensReply,
    ShutdownReply,
    SubmitBatchReply,
    SubmitReply,
    TaskParams,
    TasksParams,
    TasksReply,
    TypeParams,
    WatchParams,
    WatchReply,
    WorkspacesParams,
    WorkspacesReply,
)
from orchestra.viewing import (
    agent_view,
    health_word,
    node_view,
    plan_line,
    plan_view,
    status_view,
    task_counts,
    task_detail,
    task_view,
    uptime_ms,
)
from orchestra.views import EventView, HealthView, PlanView, ReportData, StatusView, TaskDetail
from orchestra.workbench import AppOptions, Workbench

T = TypeVar("T")

EVENTS_KEPT: Final = 20_000
"""Events kept in memory for watchers; one that is further behind starts from the oldest of these."""
SHUTDOWN_TIMEOUT_MS: Final = 300_000


class App(CostUseCases):
    """One per coordinator. Implements `orchestra.usecases.UseCases`."""

    def __init__(self, bench: Workbench, options: AppOptions) -> None:
        self._bench = bench
        self._loop = bench.loop
        self.options = options
        desk = DeskOptions(options.kind_default)
        self._desk = FleetDesk(bench.loop, bench.drivers, bench.add_driver, bench.remove_driver, bench.provision, desk)
        money = CostOptions(
            options.root,
            options.kind_default,
            options.agents_default,
            options.task_defaults,
            options.models,
            options.day_budget_usd_micros,
            options.gateway_file,
        )
        work = TaskOptions(options.kind_default, options.task_defaults, options.routes, options.directory)
        self._work = TaskDesk(bench.loop, bench.find_adapter, work)
        self.costs = CostDesk(bench.loop, lambda: not bench.lens().absent, bench.ask_gateway, money)
        self.spaces = SpaceDesk(bench.loop, bench.spaces, options.spaces)
        self._recent: deque[Happened] = deque(maxlen=EVENTS_KEPT)
        self._news = asyncio.Event()
        bench.loop.listen(self._on_events)
        bench.loop.when_ended(self._wake)

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _on_events(self, state: State, happened: Sequence[Happened]) -> None:
        self._recent.extend(happened)
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def wait_for(self, question: Callable[[State], T | None]) -> T:
        """Returns the first answer of `question` that is not None, asking after every append."""
        while True:
            news = self._news
            answer = await self._loop.ask(question)
            if answer is not None:
                return answer
            await news.wait()

    # --- life cycle --------------------------------------------------------------------------------------------------

    async def init(self, params: InitParams) -> InitReply:
        nodes = await self._loop.ask(lambda state: self._nodes_named(state, params.nodes))
        agents = self._fleet(params, nodes)
        self._check_kinds(agents)
        await self._loop.request(c.Init(self.options.name, nodes, agents, params.phase))
        forgotten = await self._loop.ask(self._forgotten)
        for name in forgotten:
            await self._loop.request(c.DrainNode(name))  # no scaling may use it either
        for node in nodes:
            if node.id not in self._bench.drivers:
                self._bench.add_driver(node)
        failed = await self.wait_for(init_result)
        if failed:
            raise PortFailed(f"the orchestra could not be initialised: {failed}", hint="`orchestra doctor` looks for the cause")
        reply = await self._loop.ask(self._init_reply)
        warnings = tuple(f"{name} is no longer in the settings; `orchestra node remove {name}` forgets it" for name in forgotten)
        return msgspec.structs.replace(reply, warnings=warnings)

    def _fleet(self, params: InitParams, nodes: Sequence[NodeSpec]) -> tuple[AgentSpec, ...]:
        roster = chosen_roster(params.phase, params.roster, params.roster_text)
        if not params.agents:
            count = size_of(roster, params.agent_count, self.options.agents_default)
            return tuple(lay_out(roster, count, nodes, kind=self.options.kind_default))
        if params.roster is not None or params.roster_text is not None:
            raise BadInput("agents and a roster contradict each other", field="agents", hint="give one of them")
        return tuple(spread(params.agents, nodes))

    def _nodes_named(self, state: State, names: Sequence[str] | None) -> tuple[NodeSpec, ...]:
        """The configured nodes and those taken in since, or the ones of them that are named."""
        gone = self._forgotten(state)
        taken = {name: node.spec for name, node in state.nodes.items() if node.spec.remote and not node.draining and name not in gone}
        configured = {node.id: node for node in self.options.nodes}
        known = taken if taken and not any(node.remote for node in self.options.nodes) else taken | configured
        if not names:
            return tuple(known.values())
        for index, name in enumerate(names):
            if name not in known:
                hint = neighbour_hint(name, known, f"configured nodes: {', '.join(known)}")
                raise NotFound(f"there is no node {name!r}", field=f"nodes[{index}]", hint=hint)
        return tuple(known[NodeId(name)] for name in dict.fromkeys(names))

    def _forgotten(self, state: State) -> tuple[NodeId, ...]:
        """The machines of the last start that the settings do not name any more; one that was added since stays."""
        configured = {node.id for node in self.options.nodes}
        return tuple(name for name, node in state.nodes.items() if node.spec.remote and not node.spec.added and name not in configured)

    def _check_kinds(self, agents: Sequence[AgentSpec]) -> None:
        for kind in dict.fromkeys(agent.kind for agent in agents):
            if kind != ANY_KIND:
                self._bench.find_adapter(kind)

    def _init_reply(self, state: State) -> InitReply:
        by_node = {node: len(state.agents_on(node)) for node in state.nodes}
        status = status_view(state, self._bench.lens())
        return InitReply(
            status="initialized",
            session_ids={node.spec.id: node.session for node in state.nodes.values() if by_node[node.spec.id]},
            agent_manifest={"total": len(state.agents), **{name: count for name, count in by_node.items() if count}},
            agents_ready=status.agents.running,
            health=status.health,
        )

    async def scale(self, params: ScaleParams) -> ScaleReply:
        return await self._desk.scale(params)

    async def node_add(self, params: NodeAddParams) -> NodeReply:
        return await self._desk.node_add(params)

    async def node_drain(self, params: NodeDrainParams) -> DrainReply:
        return await self._desk.node_drain(params)

    async def node_resume(self, params: NodeParams) -> NodeReply:
        return await self._desk.node_resume(params)

    async def node_remove(self, params: NodeRemoveParams) -> NodeReply:
        return await self._desk.node_remove(params)

    async def shutdown(self, params: ShutdownParams) -> ShutdownReply:
        timeout_ms = int(params.timeout_seconds * 1000)
        await self._loop.request(c.ShutDown(params.drain_tasks, params.graceful, timeout_ms))
        return await self._loop.ask(lambda state: self._shutdown_reply(state, timeout_ms))

    def _shutdown_reply(self, state: State, timeout_ms: int) -> ShutdownReply:
        counts = task_counts(state)
        drains = state.shutdown is not None and state.shutdown.drain
        pending = counts.in_progress + (counts.queued if drains else 0)
        now = self._loop.now_ms()
        return ShutdownReply("shutdown_initiated", pending, rfc3339(min(now + timeout_ms, now + (self._rest_ms(state) if pending else 0))))

    def _rest_ms(self, state: State) -> int:
        work = work_by_priority(state)
        return max((eta_ms(state, self._loop.kernel.scheduler, state.tasks[task], work) for task in state.live), default=0)

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def submit_task(self, params: SubmitTaskParams) -> SubmitReply:
        (spec, *_) = specs = await self._work.alone((params,), [""])
        await self._loop.request(c.Submit(specs))
        return await self._loop.ask(lambda state: self._submit_reply(state, spec.id, work_by_priority(state)))

    async def submit_batch(self, params: SubmitBatchParams) -> SubmitBatchReply:
        count = len(params.tasks)
        specs = await self._work.alone(params.tasks, [f"tasks[{index}]." for index in range(count)])
        await self._loop.request(c.Submit(specs))

        def answer(state: State) -> SubmitBatchReply:
            work = work_by_priority(state)
            return SubmitBatchReply(tuple(self._submit_reply(state, spec.id, work) for spec in specs[:count]))

        return await self._loop.ask(answer)

    def _submit_reply(self, state: State, task_id: TaskId, work: Mapping[int, int]) -> SubmitReply:
        task = state.task(task_id)
        done = self._loop.now_ms() + eta_ms(state, self._loop.kernel.scheduler, task, work)
        agents = tuple(attempt.agent for attempt in task.live_attempts())
        return SubmitReply(task_id, "queued", agents, rfc3339(done), judge_of(state, task) or "")

    async def submit_plan(self, params: PlanParams) -> PlanReply:
        document = await self._work.read(params)
        known = await self._loop.ask(lambda state: latest_run(state, document.name))
        if params.resume and known is not None:
            plan, digest, tasks, over = known
            done = await self._loop.ask(lambda state: state.plans[plan].status is PlanStatus.COMPLETED)
            if done and digest != document.digest:
                return await self._start_plan(params, document)
            if digest != document.digest:
                raise Refused(
                    f"plan {plan!r} was started from another version of {params.source}",
                    hint="put the file back as it was to resume, or run it without --resume to start anew",
                )
            if not over:
                return PlanReply(plan, tasks, True, self.options.rehearsal)
            return await self._revive_plan(plan, tasks)
        return await self._start_plan(params, document)

    async def _start_plan(self, params: PlanParams, document: PlanDocument) -> PlanReply:
        plan = await self._loop.ask(lambda state: free_plan_id(state, document.name))
        specs = await self._work.of_plan(document.specs(plan), params.directory)
        await self._loop.request(c.Submit(specs, document.head(plan)))
        warnings = [f"{spec.id} is {warning}" for spec in specs for warning in spec.warnings]
        return PlanReply(plan, len(specs), False, self.options.rehearsal, (*warnings, *blind_needs(specs)))

    async def _revive_plan(self, plan: PlanId, tasks: int) -> PlanReply:
        failed = await self._loop.ask(lambda state: [t for t in state.plans[plan].tasks if is_root_failure(state.tasks[t])])
        for task in failed:
            await self._loop.request(c.RetryTask(task))
        return PlanReply(plan, tasks, True, self.options.rehearsal)

    async def cancel(self, params: CancelParams) -> CancelReply:
        reason = params.reason or "cancelled on request"
        target = parse_task_id(params.task_id)
        if await self._loop.ask(lambda state: PlanId(target) in state.plans and target not in state.tasks):
            await self._loop.request(c.CancelPlan(PlanId(target), reason))
            return CancelReply(target, await self._loop.ask(lambda state: state.plans[PlanId(target)].status.value))
        task = await self._resolve(params.task_id)
        await self._loop.request(c.CancelTask(task, reason))
        return CancelReply(task, await self._loop.ask(lambda state: "cancelling" if state.tasks[task].live_attempts() else "cancelled"))

    async def retry(self, params: TaskParams) -> RetryReply:
        task = await self._resolve(params.task_id)
        events = await self._loop.request(c.RetryTask(task))
        revived = tuple(event.task for event in events if isinstance(event, e.TaskRevived))
        return RetryReply(task, await self._loop.ask(lambda state: state.tasks[task].status.value), revived)

    async def answer(self, params: AnswerParams) -> AnswerReply:
        if len(msgspec.json.encode(params.text)) > ANSWER_BYTES_MAX:
            raise BadInput("is too long to be handed over", field="text", hint="put it into a file and name that in the answer")
        task = await self._resolve(params.task_id)
        asking = await self._loop.ask(lambda state: msgspec.structs.replace(attempt_to_answer(state.task(task), params.question)))
        node = self._driver(asking.node).node
        await node.answer(AttemptId(task, asking.number), asking.agent, asking.question_number, params.text)
        return AnswerReply(task, asking.number, asking.agent, asking.question)

    async def _resolve(self, text: str) -> TaskId:
        """Returns the task meant: the full id, or the short name of a plan's task where that is unambiguous (the latest plan wins)."""
        wanted = parse_task_id(text)
        return await self._loop.ask(lambda state: resolve_task(state, wanted))

    async def explain(self, params: TaskParams) -> ExplainReply:
        task = await self._resolve(params.task_id)
        now = self._loop.now_ms()

        def answer(state: State) -> ExplainReply:
            lens = self._bench.lens()
            why = explain(state, task, now, lens.gate, serialised=lens.serialised)
            return ExplainReply(task, state.task(task).status.value, why)

        return await self._loop.ask(answer)

    async def tasks(self, params: TasksParams) -> TasksReply:
        def answer(state: State) -> TasksReply:
            names = state.plan(PlanId(params.plan)).tasks if params.plan else list(state.tasks)
            found = [state.tasks[name] for name in names if params.status in (None, state.tasks[name].status.value)]
            lens = self._bench.lens()
            return TasksReply(tuple(task_view(state, task, lens) for task in found[-params.limit :]), len(found))

        return await self._loop.ask(answer)

    async def task(self, params: TaskParams) -> TaskDetail:
        task = await self._resolve(params.task_id)
        detail = await self._loop.ask(lambda state: task_detail(state, state.task(task), self._bench.lens()))
        return with_settled(detail, await self.costs.settled_attempts(attempts_of([detail])))

    async def logs(self, params: LogsParams) -> LogsReply:
        task = await self._resolve(params.task_id)
        number, node, over = await self._loop.ask(lambda state: attempt_place(state, task, params.attempt))
        if not number:
            return LogsReply(task, 0, (), 0, False)
        driver = self._driver(node)
        path = f"attempts/{task}/{number}/output.jsonl"
        try:
            text, size = await driver.node.read(path, params.offset, params.length)
        except NotFound:  # it printed nothing, or has not begun to
            return LogsReply(task, number, (), max(0, params.offset), over)
        start = params.offset if params.offset >= 0 else max(0, size + params.offset)
        body, _, rest = text.rpartition("\n")
        read_to = start + len(text.encode()) - len(rest.encode())
        lines = [log_line(line) for line in body.split("\n") if line] if body else []
        return LogsReply(task, number, tuple(line for line in lines if line is not None), read_to, over and read_to >= size)

    # --- agents ------------------------------------------------------------------------------------------------------

    async def agents(self, params: AgentsParams) -> AgentsReply:
        def answer(state: State) -> AgentsReply:
            lens = self._bench.lens()
            chosen = [state.agent(AgentId(number)) for number in params.agents] if params.agents else list(state.agents.values())
            return AgentsReply(tuple(agent_view(state, agent, lens) for agent in chosen))

        return await self._loop.ask(answer)

    async def screens(self, params: AgentsParams) -> ScreensReply:
        found: dict[int, str] = {}
        for node, agents in (await self._by_node(params.agents)).items():
            found |= {int(agent): text for agent, text in (await self._driver(node).node.screens(agents, params.lines)).items()}
        return ScreensReply(dict(sorted(found.items())))

    async def type_text(self, params: TypeParams) -> DoneReply:
        if not params.agents:
            raise BadInput("no agent is named", field="agents", hint="name the agents to type to, for example 3 or 1,4-6")
        for node, agents in (await self._by_node(params.agents)).items():
            await self._driver(node).node.type_text(agents, params.text, enter=params.enter)
        return DoneReply()

    async def _by_node(self, agents: Sequence[int]) -> dict[NodeId, list[AgentId]]:
        def answer(state: State) -> dict[NodeId, list[AgentId]]:
            found: dict[NodeId, list[AgentId]] = {}
            for number in agents or state.agents:
                agent = state.agent(AgentId(number))
                found.setdefault(agent.spec.node, []).append(agent.id)
            return found

        return await self._loop.ask(answer)

    def _driver(self, node: NodeId) -> NodeDriver:
        driver = self._bench.drivers.get(node)
        if driver is None or not driver.connected:
            raise PortFailed(f"node {node} is not connected", hint="`orchestra status` says why")
        return driver

    async def restart_agent(self, params: AgentParams) -> DoneReply:
        await self._loop.request(c.RestartAgent(AgentId(params.agent)))
        return DoneReply()

    async def attach(self, params: AttachParams) -> AttachReply:
        def node_of(state: State) -> NodeId:
            if params.agent is not None:
                return state.agent(AgentId(params.agent)).spec.node
            ready = [node.spec.id for node in state.nodes.values() if node.status is NodeStatus.READY]
            if not ready:
                raise PortFailed("no node is connected", hint="`orchestra status` says why")
            return ready[0]

        driver = self._driver(await self._loop.ask(node_of))
        agent = None if params.agent is None else AgentId(params.agent)
        return AttachReply(tuple(await driver.node.attach_argv(agent)))

    # --- showing -----------------------------------------------------------------------------------------------------

    async def status(self, params: StatusParams) -> StatusView:
        def answer(state: State) -> StatusView:
            lens = self._bench.lens()
            match params.scope:
                case "node":
                    node = state.node(NodeId(str(params.target)))
                    agents = state.agents_on(node.spec.id)
                    tasks = [task for task in state.tasks.values() if any(a.node == node.spec.id for a in task.attempts)]
                    return status_view(state, lens, agents, tasks)
                case "agent":
                    agent = state.agent(agent_id(params.target))
                    tasks = [task for task in state.tasks.values() if any(a.agent == agent.id for a in task.attempts)]
                    view = status_view(state, lens, [agent], tasks)
                    return msgspec.structs.replace(view, status=agent.status.value)
                case "task":
                    task = state.tasks[resolve_task(state, parse_task_id(str(params.target), field="target"))]
                    agents = [state.agents[a.agent] for a in task.live_attempts() if a.agent in state.agents]
                    return msgspec.structs.replace(status_view(state, lens, agents, [task]), status=task.status.value)
                case _:
                    return status_view(state, lens)

        return await self._look(answer)

    async def nodes(self, params: Empty) -> NodesReply:
        facts = {node: driver.facts for node, driver in self._bench.drivers.items()}
        return await self._loop.ask(
            lambda state: NodesReply(tuple(node_view(state, node, facts.get(node.spec.id)) for node in state.nodes.values()))
        )

    async def plans(self, params: Empty) -> PlansReply:
        return await self._loop.ask(lambda state: PlansReply(tuple(plan_line(plan) for plan in state.plans.values())))

    async def plan(self, params: PlanNameParams) -> PlanView:
        return await self._loop.ask(lambda state: plan_view(state, find_plan(state, params.plan), self._bench.lens()))

    async def _look(self, question: Callable[[State], T]) -> T:
        """Answers also while nothing can be made durable, when questions wait for the append that hangs. The state may then be one turn ahead of the ledger."""
        return question(self._loop.state) if self._loop.ledger_trouble else await self._loop.ask(question)

    async def workspaces(self, params: WorkspacesParams) -> WorkspacesReply:
        return await self.spaces.workspaces(params)

    async def merge_plan(self, params: MergePlanParams) -> MergePlanReply:
        return await self.spaces.merge_plan(params)

    async def health(self, params: Empty) -> HealthView:
        facts = {node: driver.facts for node, driver in self._bench.drivers.items()}

        def answer(state: State) -> HealthView:
            lens = self._bench.lens()
            nodes = tuple(node_view(state, node, facts.get(node.spec.id)) for node in state.nodes.values())
            completed, failed = today(state, lens.now_ms)
            return HealthView(
                timestamp=rfc3339(lens.now_ms),
                overall_status=health_word(state, lens),
                checks=health_checks(state, nodes, lens),
                nodes=nodes,
                tasks=task_counts(state),
                completed_today=completed,
                failed_today=failed,
                uptime_seconds=uptime_ms(state, lens.now_ms) // 1000,
            )

        return await self._look(answer)

    async def watch(self, params: WatchParams) -> WatchReply:
        after = await self._loop.ask(lambda state: state.seq) if params.after_seq < 0 else params.after_seq
        if params.wait_ms > 0:
            try:
                async with asyncio.timeout(min(params.wait_ms, 60_000) / 1000):
                    await self.wait_for(lambda state: True if state.seq > after else None)
            except TimeoutError:
                return WatchReply(after, ())
        durable = await self._loop.ask(lambda state: state.seq)
        found = [each for each in self._recent if after < each.seq <= durable][: params.limit]
        views = tuple(EventView(each.seq, each.at_ms, msgspec.Raw(msgspec.json.encode(each.event))) for each in found)
        return WatchReply(found[-1].seq if found else max(after, 0), views)

    async def report_data(self, params: PlanNameParams) -> ReportData:
        def answer(state: State) -> ReportData:
            lens = self._bench.lens()
            plan = find_plan(state, params.plan)
            return ReportData(
                orchestra=state.name,
                plan=plan_view(state, plan, lens),
                details=tuple(task_detail(state, state.tasks[task], lens) for task in plan.tasks),
                agents=tuple(agent_view(state, agent, lens) for agent in state.agents.values()),
                made_ms=lens.now_ms,
                version=self.options.version,
                root=self.options.root,
                rehearsal=self.options.rehearsal,
            )

        data = await self._loop.ask(answer)
        settled = await self.costs.settled_attempts(attempts_of(data.details))
        return msgspec.structs.replace(data, details=tuple(with_settled(detail, settled) for detail in data.details))

    async def report(self, params: PlanNameParams) -> ReportReply:
        data = await self.report_data(params)
        html, markdown = await asyncio.get_running_loop().run_in_executor(None, self._bench.write_report, data)
        return ReportReply(data.plan.plan, str(html), str(markdown))

    async def backup(self, params: BackupParams) -> BackupReply:
        target = Path(params.target)
        if not target.is_absolute():
            raise BadInput("the target must be an absolute path", field="target")
        return BackupReply(str(target), await self._bench.backup(target))
