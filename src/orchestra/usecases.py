"""The use cases: everything an interface can ask of the orchestra, as ONE Protocol.

`orchestra.app` carries them out in the coordinator's process; `orchestra.client` asks a running coordinator over its socket. Interfaces parse, call one
of these, and render; they decide nothing. `METHODS` is the table both sides of the socket are made from.
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from orchestra.costviews import BudgetsReply, CostReply, EstimateCostReply, EstimateReply, LimitsReply
from orchestra.intake.request import (
    AnswerParams,
    CancelParams,
    EstimateCostParams,
    InitParams,
    ScaleParams,
    ShutdownParams,
    StatusParams,
    SubmitBatchParams,
    SubmitTaskParams,
)
from orchestra.views import (
    AgentView,
    EventView,
    HealthView,
    NodeView,
    PlanLine,
    PlanView,
    ReportData,
    StatusView,
    TaskDetail,
    TaskView,
)
from orchestra.workspace import Brought, KeptRef, Tidied


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the parameters that are our own; those of the parent interface are in `orchestra.intake.request`."""


class Reply(msgspec.Struct, frozen=True):
    """Base of all replies."""


class InitReply(Reply, frozen=True, omit_defaults=True):
    status: str
    session_ids: dict[str, str]
    agent_manifest: dict[str, int]
    """`total`, and the count of each node by its name."""
    agents_ready: int
    health: str
    warnings: tuple[str, ...] = ()
    """Machines that are not used any more, and what to do about them; not there if there are none."""


class SubmitReply(Reply, frozen=True, omit_defaults=True):
    task_id: str
    status: str
    assigned_agents: tuple[int, ...]
    estimated_completion: str
    """RFC 3339, UTC."""
    judged_by: str = ""
    """The task that judges what no program can check, after this one is completed; it may send it back. Not there if nothing is judged."""


class SubmitBatchReply(Reply, frozen=True):
    tasks: tuple[SubmitReply, ...]


class PlanParams(Params, frozen=True):
    """Start a plan, or go on with it. `text` is the plan file, `source` its name for messages, `directory` its absolute folder."""

    text: str
    source: str
    directory: str
    resume: bool = False
    strict: bool = False
    """Criteria that no program can check are refused, whatever the plan and the settings say."""


class PlanReply(Reply, frozen=True):
    plan: str
    tasks: int
    resumed: bool
    """The plan was there already and goes on."""
    rehearsal: bool = False
    """No model is asked."""
    warnings: tuple[str, ...] = ()


class ScaleReply(Reply, frozen=True):
    status: str
    current_count: int
    target_count: int
    eta_seconds: int


class ShutdownReply(Reply, frozen=True):
    status: str
    pending_tasks: int
    estimated_completion: str


class CancelReply(Reply, frozen=True):
    task_id: str
    status: str


class AnswerReply(Reply, frozen=True):
    task_id: str
    attempt: int
    agent: int
    question: str
    """What was answered."""
    status: str = "delivered"
    """The worker has it; `task show` tells when the agent goes on."""


class TaskParams(Params, frozen=True):
    task_id: str


class RetryReply(Reply, frozen=True):
    task_id: str
    status: str
    revived: tuple[str, ...]


class ExplainReply(Reply, frozen=True):
    task_id: str
    status: str
    explanation: str


class TasksParams(Params, frozen=True):
    plan: str | None = None
    status: str | None = None
    limit: int = 1000


class TasksReply(Reply, frozen=True):
    tasks: tuple[TaskView, ...]
    total: int
    """Matches before the limit."""


class LogsParams(Params, frozen=True):
    """Output of one attempt (0: the latest). `offset` is where the last reply said to go on; negative: that many bytes from the end."""

    task_id: str
    attempt: int = 0
    offset: int = 0
    length: int = 262_144


class LogLine(msgspec.Struct, frozen=True):
    ms: int
    stream: str
    text: str


class LogsReply(Reply, frozen=True):
    task_id: str
    attempt: int
    lines: tuple[LogLine, ...]
    offset: int
    over: bool
    """The attempt has ended and everything was read."""


class AgentParams(Params, frozen=True):
    agent: int


class AgentsParams(Params, frozen=True):
    """Slots by number; empty means all."""

    agents: tuple[int, ...] = ()
    lines: int | None = None


class AgentsReply(Reply, frozen=True):
    agents: tuple[AgentView, ...]


class ScreensReply(Reply, frozen=True):
    screens: dict[int, str]


class TypeParams(Params, frozen=True):
    agents: tuple[int, ...]
    text: str
    enter: bool = True


class DoneReply(Reply, frozen=True):
    done: bool = True


class AttachParams(Params, frozen=True):
    agent: int | None = None


class AttachReply(Reply, frozen=True):
    argv: tuple[str, ...]
    """Command that shows the windows; the interface runs it in the person's terminal."""


class PlanNameParams(Params, frozen=True):
    """A plan's id; None: the latest."""

    plan: str | None = None


class PlansReply(Reply, frozen=True):
    plans: tuple[PlanLine, ...]


class NodesReply(Reply, frozen=True):
    nodes: tuple[NodeView, ...]


class NodeReply(Reply, frozen=True):
    node: NodeView


class NodeAddParams(Params, frozen=True):
    """A machine for the fleet; what it says is kept in the ledger."""

    name: str
    host: str = ""
    ssh_user: str = ""
    max_agents: int = 100
    port: int = 0
    zone: str = ""
    weight: int = 100
    tags: tuple[str, ...] = ()
    agent_memory_mb: int = 0
    folder: str = ""


class NodeParams(Params, frozen=True):
    node: str


class NodeDrainParams(Params, frozen=True):
    node: str
    move: bool = False
    """As many agents as leave are started on the other nodes."""


class NodeRemoveParams(Params, frozen=True):
    node: str
    force: bool = False


class DrainReply(Reply, frozen=True):
    node: str
    leaving: int
    moved: int


class WatchParams(Params, frozen=True):
    """Events after `after_seq`, waiting up to `wait_ms` for the first; -1: from now on."""

    after_seq: int = -1
    wait_ms: int = 10_000
    limit: int = 1000


class WatchReply(Reply, frozen=True):
    seq: int
    """Go on after this one."""
    events: tuple[EventView, ...]


class BackupParams(Params, frozen=True):
    target: str


class BackupReply(Reply, frozen=True):
    path: str
    events: int


class ReportReply(Reply, frozen=True):
    plan: str
    html: str
    markdown: str


class CostParams(Params, frozen=True):
    """What was spent, counted `by` task, agent, model, day, plan or attempt."""

    by: str = "task"
    plan: str | None = None
    """Only of this plan; not with model or day, which are counted over all plans."""
    name: str | None = None
    """One of them only."""
    limit: int = 0
    """Rows at most, the dearest first; 0 means all."""
    compare: bool = True
    """With what the agents' programs said; who looks often leaves it out."""


class SetBudgetParams(Params, frozen=True):
    """A budget of a day (`2026-01-31`; no name: today), a plan, a task or an agent."""

    scope: str
    name: str
    usd_micros: int
    """Negative lifts it."""


class EstimateParams(Params, frozen=True):
    """What a plan will take: `text`, `source` and `directory` as for `PlanParams`."""

    text: str
    source: str
    directory: str
    agents: int = 0
    """With how many agents; 0: those there are, else those the plan asks for."""


class WorkspacesParams(Params, frozen=True):
    """Which workspaces are looked at, and what may go. Ages in milliseconds; None: as the settings say."""

    node: str | None = None
    older_than_ms: int | None = None
    quota_bytes: int | None = None
    refs: bool = False
    """Not workspaces, but the refs that keep unmerged work."""
    remove: bool = False
    """False: nothing changes."""


class NodeSpaces(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is on one machine. `total_bytes` is all of it, `freed_bytes` what goes."""

    node: str
    workspaces: tuple[Tidied, ...] = ()
    refs: tuple[KeptRef, ...] = ()
    total_bytes: int = 0
    freed_bytes: int = 0
    trouble: str = ""
    """Why it could not be looked at."""


class MergePlanParams(Params, frozen=True):
    """A plan that is completed, and the branch of the user's that its work is to come into."""

    plan: str | None
    branch: str


class MergePlanReply(Reply, frozen=True):
    plan: str
    repos: tuple[Brought, ...]


class WorkspacesReply(Reply, frozen=True):
    nodes: tuple[NodeSpaces, ...]
    removed: bool
    """What is said to go has gone; else it would."""


class Empty(Params, frozen=True):
    pass


class UseCases(Protocol):
    """What every interface is a skin over. All raise `OrchestraError`s."""

    async def init(self, params: InitParams) -> InitReply:
        """Sets up the fleet and returns when it is ready."""
        ...

    async def submit_task(self, params: SubmitTaskParams) -> SubmitReply:
        """Accepts one task, durably."""
        ...

    async def submit_batch(self, params: SubmitBatchParams) -> SubmitBatchReply:
        """Accepts many tasks, all or none."""
        ...

    async def submit_plan(self, params: PlanParams) -> PlanReply:
        """Accepts a plan, or finds the one that is to go on."""
        ...

    async def status(self, params: StatusParams) -> StatusView:
        """The figures of everything, or of one node, agent or task."""
        ...

    async def scale(self, params: ScaleParams) -> ScaleReply:
        """Changes the number of agents; running work is never touched."""
        ...

    async def shutdown(self, params: ShutdownParams) -> ShutdownReply:
        """Begins the end."""
        ...

    async def cancel(self, params: CancelParams) -> CancelReply:
        """Cancels a task, or a plan by its id."""
        ...

    async def retry(self, params: TaskParams) -> RetryReply:
        """Revives a failed or cancelled task and what was blocked by it."""
        ...

    async def answer(self, params: AnswerParams) -> AnswerReply:
        """Answers what a task's agent waits for."""
        ...

    async def explain(self, params: TaskParams) -> ExplainReply:
        """Why is this task not running?"""
        ...

    async def tasks(self, params: TasksParams) -> TasksReply: ...

    async def task(self, params: TaskParams) -> TaskDetail: ...

    async def logs(self, params: LogsParams) -> LogsReply: ...

    async def plans(self, params: Empty) -> PlansReply: ...

    async def plan(self, params: PlanNameParams) -> PlanView: ...

    async def agents(self, params: AgentsParams) -> AgentsReply: ...

    async def screens(self, params: AgentsParams) -> ScreensReply:
        """What the windows show now."""
        ...

    async def type_text(self, params: TypeParams) -> DoneReply:
        """Types into windows as a person would."""
        ...

    async def restart_agent(self, params: AgentParams) -> DoneReply: ...

    async def attach(self, params: AttachParams) -> AttachReply: ...

    async def nodes(self, params: Empty) -> NodesReply: ...

    async def node_add(self, params: NodeAddParams) -> NodeReply:
        """Takes a machine into the fleet, or changes what is known of one."""
        ...

    async def node_drain(self, params: NodeDrainParams) -> DrainReply:
        """Lets a machine's agents finish and leave."""
        ...

    async def node_resume(self, params: NodeParams) -> NodeReply:
        """Uses a drained machine again."""
        ...

    async def node_remove(self, params: NodeRemoveParams) -> NodeReply:
        """Forgets a machine."""
        ...

    async def workspaces(self, params: WorkspacesParams) -> WorkspacesReply:
        """Looks at the places where attempts worked, and lets go of what is old or too much if told to."""
        ...

    async def merge_plan(self, params: MergePlanParams) -> MergePlanReply:
        """Merges a completed plan's branch into a branch of the user's, in each repository it worked in. A conflict changes nothing there."""
        ...

    async def health(self, params: Empty) -> HealthView: ...

    async def watch(self, params: WatchParams) -> WatchReply: ...

    async def report(self, params: PlanNameParams) -> ReportReply:
        """Writes the run report of a plan and returns where it is."""
        ...

    async def report_data(self, params: PlanNameParams) -> ReportData: ...

    async def backup(self, params: BackupParams) -> BackupReply: ...

    async def cost(self, params: CostParams) -> CostReply:
        """What was spent: as the gateway settled it, and as the agents' programs say."""
        ...

    async def limits(self, params: Empty) -> LimitsReply:
        """The model APIs' limits as they stand."""
        ...

    async def budgets(self, params: Empty) -> BudgetsReply: ...

    async def set_budget(self, params: SetBudgetParams) -> BudgetsReply:
        """Sets or lifts a budget."""
        ...

    async def estimate(self, params: EstimateParams) -> EstimateReply:
        """What a plan will cost, task by task, without starting it."""
        ...

    async def estimate_cost(self, params: EstimateCostParams) -> EstimateCostReply:
        """What a task in words will cost."""
        ...


class Method(msgspec.Struct, frozen=True):
    """One row of the socket API."""

    params: type[msgspec.Struct]
    result: object
    """Type of the reply, as msgspec takes it."""


METHODS: Final[dict[str, Method]] = {
    "init": Method(InitParams, InitReply),
    "submit_task": Method(SubmitTaskParams, SubmitReply),
    "submit_batch": Method(SubmitBatchParams, SubmitBatchReply),
    "submit_plan": Method(PlanParams, PlanReply),
    "status": Method(StatusParams, StatusView),
    "scale": Method(ScaleParams, ScaleReply),
    "shutdown": Method(ShutdownParams, ShutdownReply),
    "cancel": Method(CancelParams, CancelReply),
    "retry": Method(TaskParams, RetryReply),
    "answer": Method(AnswerParams, AnswerReply),
    "explain": Method(TaskParams, ExplainReply),
    "tasks": Method(TasksParams, TasksReply),
    "task": Method(TaskParams, TaskDetail),
    "logs": Method(LogsParams, LogsReply),
    "plans": Method(Empty, PlansReply),
    "plan": Method(PlanNameParams, PlanView),
    "agents": Method(AgentsParams, AgentsReply),
    "screens": Method(AgentsParams, ScreensReply),
    "type_text": Method(TypeParams, DoneReply),
    "restart_agent": Method(AgentParams, DoneReply),
    "attach": Method(AttachParams, AttachReply),
    "nodes": Method(Empty, NodesReply),
    "node_add": Method(NodeAddParams, NodeReply),
    "node_drain": Method(NodeDrainParams, DrainReply),
    "node_resume": Method(NodeParams, NodeReply),
    "node_remove": Method(NodeRemoveParams, NodeReply),
    "workspaces": Method(WorkspacesParams, WorkspacesReply),
    "merge_plan": Method(MergePlanParams, MergePlanReply),
    "health": Method(Empty, HealthView),
    "watch": Method(WatchParams, WatchReply),
    "report": Method(PlanNameParams, ReportReply),
    "report_data": Method(PlanNameParams, ReportData),
    "backup": Method(BackupParams, BackupReply),
    "cost": Method(CostParams, CostReply),
    "limits": Method(Empty, LimitsReply),
    "budgets": Method(Empty, BudgetsReply),
    "set_budget": Method(SetBudgetParams, BudgetsReply),
    "estimate": Method(EstimateParams, EstimateReply),
    "estimate_cost": Method(EstimateCostParams, EstimateCostReply),
}
"""Every method of `UseCases`, by name; a test sees to it that none is missing."""
