"""The live view of a run. `lines_of` is pure: a plan, a size and a moment come in, at most that many lines of at most that width go out."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from orchestra.edges.cli.render import one_line
from orchestra.edges.cli.screens import News
from orchestra.edges.cli.summary import OVER, QUEUED, counts
from orchestra.edges.cli.task_text import agents_of, doing
from orchestra.quantity import show_ms
from orchestra.views import PlanView, StatusView, TaskView

GLYPHS: Final = {
    "completed": ("■", "green"),
    "failed": ("✗", "red"),
    "cancelled": ("-", "yellow"),
    "retry_wait": ("↻", "yellow"),
    "unknown": ("?", "yellow"),
    **dict.fromkeys(("assigned", "running", "verifying"), ("▶", "cyan")),
    "waiting": ("?", "yellow"),
}
WAITING: Final = ("·", "dim")
STAGES_MAX: Final = 6
FAILURES_MAX: Final = 3
NEXT_SHOWN: Final = 8
LABEL_COLUMNS: Final = 9
"""`stage 12 ` before the tasks of a stage."""
SAID_MAX: Final = 2


class LiveScreen:
    """Draws on the terminal; nothing of it stays when it is left."""

    wants_plan = True

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._said: list[str] = []
        self._seen: tuple[PlanView, StatusView] | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def on_news(self, news: Sequence[News]) -> None:
        """Everything shown comes from the plan itself."""

    def draw(self, plan: PlanView, status: StatusView) -> None:
        """Draws the plan as it is."""
        self._seen = plan, status
        width, height = self._console.size
        lines = lines_of(plan, status.agents.running, width, height - 1, self._said, status.warnings)
        self._live.update(Group(*lines), refresh=True)

    def say(self, text: str) -> None:
        """Shows a remark below the view."""
        self._said = [*self._said, text][-SAID_MAX:]
        if self._seen is not None:
            self.draw(*self._seen)


def lines_of(plan: PlanView, agents: int, width: int, height: int, said: Sequence[str] = (), warnings: Sequence[str] = ()) -> list[Text]:
    """Returns the view, fitted into `width` by `height`; `warnings` are those of the status, which name lost and degraded nodes first."""
    stages, failures = _stages(plan, width), _failures(plan)
    foot = [Text(one_line(text), "yellow") for text in said]
    head = [_header(plan), _bar(plan, agents, width), *([Text(one_line("; ".join(warnings)), "yellow")] if warnings else [])]
    coming = _coming(plan)
    room = max(0, height - len(head) - len(foot) - len(coming) - len(failures))
    shown = _window(stages, plan, min(STAGES_MAX, room // 2))
    running = _running(plan, room - len(shown))
    lines = [*head, *shown, *running, *coming, *failures]
    fitted = [*lines[: max(0, height - len(foot))], *foot][-height:] if height > 0 else []
    for line in fitted:
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return fitted


def _header(plan: PlanView) -> Text:
    found = counts(plan.tasks)
    line = Text.assemble((one_line(plan.name), "bold"), f"  {show_ms(max(0, plan.now_ms - plan.submitted_ms))}  ")
    line.append(f"{found.completed}/{len(plan.tasks)} done", "green")
    line.append(f", {found.in_progress} running, {found.queued} waiting")
    if found.failed:
        line.append(f", {found.failed} failed", "red")
    if found.cancelled:
        line.append(f", {found.cancelled} cancelled", "yellow")
    return line


def _bar(plan: PlanView, agents: int, width: int) -> Text:
    over = sum(task.status in OVER for task in plan.tasks)
    share = over / len(plan.tasks) if plan.tasks else 1.0
    label = f" {share:4.0%}  ETA {show_ms(eta_ms(plan, agents))}" if share < 1 else f" {share:4.0%}"
    columns = max(0, min(60, width - len(label)))
    filled = int(columns * share)
    return Text.assemble(("━" * filled, "green"), ("─" * (columns - filled), "dim"), label)


def eta_ms(plan: PlanView, agents: int) -> int:
    """Returns how long the rest takes by the estimates: the longest path, or the work there is for the agents there are.

    What has run already is not ahead, neither of the work nor on the path.
    """
    rest = [task for task in plan.tasks if task.status not in OVER]
    spent = {task.task: min(task.estimate_ms, task.duration_ms) if task.status not in QUEUED else 0 for task in rest}
    work = sum(task.estimate_ms - spent[task.task] for task in rest)
    return max(work // max(1, agents), max((task.rank_ms - spent[task.task] for task in rest), default=0))


def depths(tasks: Sequence[TaskView]) -> dict[str, int]:
    """Returns how many tasks stand before each on its longest way; tasks come in topological order."""
    found: dict[str, int] = {}
    for task in tasks:
        found[task.task] = 1 + max((found.get(need, -1) for need in task.needs), default=-1)
    return found


def _by_stage(plan: PlanView) -> list[list[TaskView]]:
    depth = depths(plan.tasks)
    stages: list[list[TaskView]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for task in plan.tasks:
        stages[depth[task.task]].append(task)
    return stages


def _stages(plan: PlanView, width: int) -> list[Text]:
    """One line a stage: its tasks by name where they fit, as marks where those fit, else as a bar."""
    return [_stage(number, tasks, plan.plan, width) for number, tasks in enumerate(_by_stage(plan), 1)]


def _stage(number: int, tasks: Sequence[TaskView], plan: str, width: int) -> Text:
    line = Text(f"stage {number}".ljust(LABEL_COLUMNS), "dim")
    names = Text("  ").join([_named(task, plan) for task in tasks])
    if names.cell_len <= width - LABEL_COLUMNS:
        return line + names
    if len(tasks) <= width - LABEL_COLUMNS:
        return line + Text.assemble(*[GLYPHS.get(task.status, WAITING) for task in tasks])
    over = sum(task.status in OVER for task in tasks)
    label = f" {over}/{len(tasks)}"
    columns = max(0, min(40, width - LABEL_COLUMNS - len(label)))
    filled = columns * over // len(tasks)
    return line + Text.assemble(("━" * filled, "green"), ("─" * (columns - filled), "dim"), label)


def _named(task: TaskView, plan: str) -> Text:
    glyph, style = GLYPHS.get(task.status, WAITING)
    return Text.assemble((f"{glyph} {short(task, plan)}", style))


def _window(stages: list[Text], plan: PlanView, size: int) -> list[Text]:
    """Returns the stages round the first that is not over."""
    grouped = _by_stage(plan)
    current = next((index for index, tasks in enumerate(grouped) if any(task.status not in OVER for task in tasks)), len(stages))
    start = max(0, min(current - 1, len(stages) - size))
    return stages[start : start + size]


def _running(plan: PlanView, room: int) -> list[Text]:
    tasks = [task for task in plan.tasks if task.status not in OVER and task.status not in QUEUED]
    if not tasks or room < 2:
        return []
    shown = tasks if len(tasks) < room else tasks[: room - 2]
    names = [short(task, plan.plan) for task in shown]
    wide = min(24, max([4, *map(len, names)]))
    lines = [Text(f"{'agent':<6} {'task':<{wide}} {'time':>8} {'%':>4}  doing", "dim")]
    for task, name in zip(shown, names, strict=True):
        percent = "" if task.progress is None else f"{task.progress:.0%}"
        asks = f"waits for an answer: {one_line(task.question)}" if task.question else ""
        activity = asks or one_line(task.activity) or (task.status if task.status != "running" else one_line(task.description))
        lines.append(Text(f"{agents_of(task)[:6]:<6} {name[:wide]:<{wide}} {show_ms(task.duration_ms):>8} {percent:>4}  {activity}"))
    if len(shown) < len(tasks):
        lines.append(Text(f"and {len(tasks) - len(shown)} more", "dim"))
    return lines


def _coming(plan: PlanView) -> list[Text]:
    """The tasks that are likely next: those on the longest remaining path whose needs are nearest to done."""
    done = {task.task for task in plan.tasks if task.status == "completed"}
    waiting = [task for task in plan.tasks if task.status in QUEUED]
    waiting.sort(key=lambda task: (sum(need not in done for need in task.needs), -task.rank_ms))
    if not waiting:
        return []
    names = ", ".join(short(task, plan.plan) for task in waiting[:NEXT_SHOWN])
    return [Text.assemble(("next: ", "dim"), names, "" if len(waiting) <= NEXT_SHOWN else f" and {len(waiting) - NEXT_SHOWN} more")]


def _failures(plan: PlanView) -> list[Text]:
    troubled = [task for task in plan.tasks if task.status == "failed"] or [task for task in plan.tasks if task.status == "retry_wait"]
    lines = []
    for task in troubled[:FAILURES_MAX]:
        glyph, style = GLYPHS[task.status]
        lines.append(Text.assemble((f"{glyph} {short(task, plan.plan)}", style), f": {one_line(doing(task))}"))
    return lines


def short(task: TaskView, plan: str) -> str:
    """Returns a task's name without its plan."""
    return one_line(task.task.removeprefix(f"{plan}/"))
