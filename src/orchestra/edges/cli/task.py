"""`orchestra task`: submit, list, show, logs, cancel, answer, explain, retry; diff, result and artifacts are in `task_files`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from orchestra.edges.cli import task_text as text
from orchestra.edges.cli.grammar import Command, Group, session_of
from orchestra.edges.cli.session import Session
from orchestra.edges.cli.task_files import artifacts, diff, result
from orchestra.errors import BadInput

if TYPE_CHECKING:
    from orchestra.usecases import LogsParams, LogsReply, SubmitReply, UseCases

STATUSES: Final = (
    "pending",
    "queued",
    "assigned",
    "running",
    "waiting",
    "verifying",
    "unknown",
    "retry_wait",
    "completed",
    "failed",
    "cancelled",
)
OVER: Final = ("completed", "failed", "cancelled")
FOLLOW_SECONDS: Final = 0.3
"""Pause of `logs -f` when there is nothing new: quick to the eye, nothing to the machine."""


@click.group("task", cls=Group, example="orchestra task list --status running")
def task() -> None:
    """Submit, watch, stop and retry tasks."""


for each in (diff, result, artifacts):
    task.add_command(each)


@task.command(
    "submit",
    cls=Command,
    example=(
        'orchestra task submit "Count the lines" --run "wc -l *.py"\n'
        'orchestra task submit "Implement the login form" --agent claude --criterion "All tests pass"\n'
        "orchestra task submit --from tasks.json"
    ),
)
@click.argument("description", required=False)
@click.option("--run", "command", metavar="SCRIPT", help="A shell script as the work.")
@click.option("--prompt", metavar="TEXT", help="Words for a model as the work; default is the description.")
@click.option("--id", "task_id", metavar="NAME", help="Its id; made up if absent.")
@click.option("--agent", metavar="KIND", help="Agent kind that has to run it.")
@click.option("--node", metavar="NODE", help="Machine it has to run on.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="What its machine has to be tagged with; may be repeated.")
@click.option("--program", "programs", multiple=True, metavar="NAME", help="What has to be installed there; may be repeated.")
@click.option("--category", type=click.Choice(["coding", "business", "research", "support"]))
@click.option("--priority", type=click.Choice(["critical", "high", "medium", "low"]))
@click.option("--needs", "dependencies", multiple=True, metavar="TASK", help="A task that must be completed before; may be repeated.")
@click.option("--criterion", "success_criteria", multiple=True, metavar="TEXT", help="What is checked at the end; may be repeated.")
@click.option("--strict", is_flag=True, help="Refuse a criterion that no program can check, instead of having an agent judge it.")
@click.option("--retries", type=click.IntRange(0), metavar="N")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Longest time an attempt may take.")
@click.option("--workspace", metavar="FOLDER", help="Folder it works in; default is the one you are in.")
@click.option(
    "--isolation",
    type=click.Choice(["worktree", "shared"]),
    help="A worktree (or copy) of that folder for each attempt, or the folder itself; default is shared for scripts, worktree for other agents.",
)
@click.option("--affinity", metavar="KEY", help="Tasks with the same key prefer the same agent, and go on with its session.")
@click.option("--count", type=click.IntRange(1, 200), metavar="N", help="Agents that try it side by side; the best result wins.")
@click.option(
    "--from",
    "source",
    type=click.Path(allow_dash=True, dir_okay=False, path_type=Path),
    help="JSON file with one task, or several as {tasks: [...]}.",
)
@click.pass_context
def submit(context: click.Context, /, source: Path | None, **given: Any) -> None:
    """Submit one task, or a file of tasks.

    It works in the folder you are in, as a plan's tasks do in the plan's: scripts in the folder itself, other agents in a worktree (or copy) of their own, whose
    verified work is merged into the branch orchestra/_/merged.
    """
    from orchestra.intake.request import SubmitBatchParams, SubmitTaskParams, parse_params

    session = session_of(context)
    said = {name: value for name, value in given.items() if value is not None and value is not False and value != ()}
    if source is None:
        request: object = request_of(said)
    elif said:
        raise BadInput("--from goes alone", field="from", hint="write everything into the file")
    else:
        request = read_request(source)
    see_from(str(Path.cwd()), request)
    if isinstance(request, dict) and "tasks" in request:
        batch = parse_params(SubmitBatchParams, request)
        replies = session.ask(lambda use_cases: use_cases.submit_batch(batch))
        session.render.show(replies, lambda: _submitted(session, replies.tasks))
        return
    params = parse_params(SubmitTaskParams, request)
    reply = session.ask(lambda use_cases: use_cases.submit_task(params))
    session.render.show(reply, lambda: _submitted(session, (reply,)))


def request_of(said: dict[str, Any]) -> dict[str, Any]:
    """Returns the request that the options of `task submit` mean.

    Raises:
        BadInput: They say nothing, or two things at once.
    """
    if "description" not in said:
        raise BadInput(
            "there is nothing to do", field="description", hint='say what: orchestra task submit "Count the lines" --run "wc -l *.py"'
        )
    command, prompt = said.pop("command", None), said.pop("prompt", None)
    if command is not None and prompt is not None:
        raise BadInput("--run and --prompt are two kinds of work", hint="give one of them")
    if command is not None or prompt is not None:
        said["payload"] = {"type": "analysis" if command is None else "command", "content": prompt if command is None else command}
    if "timeout" in said:
        said["constraints"] = {"max_execution_time_seconds": said.pop("timeout")}
    if "count" in said:
        said["target_agents"] = {"count": said.pop("count")}
    return said


def see_from(folder: str, request: object) -> None:
    """Puts into a request, or each of a batch, where its workspace is seen from, unless it says so itself. What is no request stays as it is."""
    tasks = request.get("tasks") if isinstance(request, dict) and "tasks" in request else [request]
    for each in tasks if isinstance(tasks, list) else []:
        if isinstance(each, dict):
            each.setdefault("directory", folder)


def read_request(source: Path) -> object:
    """Returns the plain values in a JSON file; `-` is standard input."""
    from orchestra.intake.document import parse

    name = "standard input" if str(source) == "-" else str(source)
    try:
        body = sys.stdin.read() if str(source) == "-" else source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"{name} cannot be read: {exc}", field="from", hint="name a JSON file in UTF-8") from exc
    return parse(body, source=name, error=BadInput).value


def _submitted(session: Session, replies: Sequence[SubmitReply]) -> None:
    for reply in replies:
        agents = f" on agents {', '.join(map(str, reply.assigned_agents))}" if reply.assigned_agents else ""
        judge = f"; {reply.judged_by} judges what no program can check" if reply.judged_by else ""
        session.render.line(f"{reply.task_id} {reply.status}{agents}, expected {reply.estimated_completion}{judge}")


@task.command("list", cls=Command, example="orchestra task list --plan level6 --status failed")
@click.option("--plan", metavar="PLAN", help="Only the tasks of this plan.")
@click.option("--status", type=click.Choice(STATUSES), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(1), default=1000, metavar="N", help="Show the last N.  [default: 1000]")
@click.pass_context
def list_tasks(context: click.Context, plan: str | None, status: str | None, limit: int) -> None:
    """List tasks."""
    from orchestra.usecases import TasksParams

    session = session_of(context)
    reply = session.ask(lambda use_cases: use_cases.tasks(TasksParams(plan, status, limit)))
    session.render.show(reply, lambda: text.show_tasks(session.render, reply))


@task.command("show", cls=Command, example="orchestra task show level6/core")
@click.argument("task_id", metavar="TASK")
@click.pass_context
def show(context: click.Context, task_id: str) -> None:
    """Show everything about one task.

    TASK is its id, or a plan's task by its short name.
    """
    from orchestra.usecases import TaskParams

    session = session_of(context)
    detail = session.ask(lambda use_cases: use_cases.task(TaskParams(task_id)))
    session.render.show(detail, lambda: text.show_detail(session.render, detail))


@task.command("logs", cls=Command, example="orchestra task logs level6/core --follow")
@click.argument("task_id", metavar="TASK")
@click.option("-f", "--follow", is_flag=True, help="Go on until the task is over.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Which attempt; default is the latest.")
@click.pass_context
def logs(context: click.Context, task_id: str, follow: bool, attempt: int | None) -> None:
    """Show what a task has written."""
    from orchestra.usecases import LogsParams, LogsReply

    session = session_of(context)
    first = LogsParams(task_id, attempt or 0)
    if follow:
        session.ask(lambda use_cases: follow_logs(session, use_cases, first))
        return
    pieces = session.ask(lambda use_cases: read_logs(use_cases, first))
    last, lines = pieces[-1], tuple(line for piece in pieces for line in piece.lines)

    def human() -> None:
        for line in lines:
            session.render.data(line.text)

    session.render.show(LogsReply(last.task_id, last.attempt, lines, last.offset, last.over), human)


async def read_logs(use_cases: UseCases, first: LogsParams) -> list[LogsReply]:
    """Returns everything an attempt has written so far."""
    import msgspec

    pieces = [await use_cases.logs(first)]
    while pieces[-1].lines and not pieces[-1].over:
        last = pieces[-1]
        pieces.append(await use_cases.logs(msgspec.structs.replace(first, attempt=last.attempt, offset=last.offset)))
    return pieces


async def follow_logs(session: Session, use_cases: UseCases, first: LogsParams) -> None:
    """Writes lines as they come. Without a chosen attempt it goes on with the next one until the task is over."""
    import msgspec

    from orchestra.usecases import TaskParams

    at, done = first, 0
    while True:
        reply = await use_cases.logs(at)
        if reply.attempt > done:
            for line in reply.lines:
                session.render.show(line, lambda words=line.text: session.render.data(words))  # type: ignore[misc]
            at = msgspec.structs.replace(at, attempt=reply.attempt, offset=reply.offset)
        if reply.over or reply.attempt <= done:
            if first.attempt or (await use_cases.task(TaskParams(first.task_id))).task.status in OVER:
                return
            done, at = max(done, reply.attempt), first
        if reply.over or not reply.lines:
            await session.pause(FOLLOW_SECONDS)


@task.command("cancel", cls=Command, example='orchestra task cancel level6/core --reason "wrong branch"')
@click.argument("task_ids", nargs=-1, required=True, metavar="TASK...")
@click.option("--reason", default="", metavar="TEXT", help="Why; kept in the ledger.")
@click.pass_context
def cancel(context: click.Context, task_ids: tuple[str, ...], reason: str) -> None:
    """Cancel tasks, or a whole plan by its id."""
    from orchestra.intake.request import CancelParams, parse_params

    session = session_of(context)
    requests = [parse_params(CancelParams, {"task_id": each, "reason": reason}) for each in task_ids]

    async def stop(use_cases: UseCases) -> None:
        for request in requests:
            reply = await use_cases.cancel(request)
            session.render.show(reply, lambda reply=reply: session.render.line(f"{reply.task_id} {reply.status}"))  # type: ignore[misc]

    session.ask(stop)


@task.command("answer", cls=Command, example='orchestra task answer level6/core yes\norchestra task answer core "Use the second one."')
@click.argument("task_id", metavar="TASK")
@click.argument("text", metavar="TEXT")
@click.option("--question", type=click.IntRange(0), metavar="N", help="Only if it still waits for the answer to this question.")
@click.pass_context
def answer(context: click.Context, task_id: str, text: str, question: int | None) -> None:
    """Answer what a task's agent waits for.

    A permission is given by yes, and refused by no or by any other words, which the agent is told.
    """
    from orchestra.intake.request import AnswerParams, parse_params

    session = session_of(context)
    number = {} if question is None else {"question": question}
    params = parse_params(AnswerParams, {"task_id": task_id, "text": text, **number})
    reply = session.ask(lambda use_cases: use_cases.answer(params))
    session.render.show(reply, lambda: session.render.line(f"{reply.task_id}: agent #{reply.agent} has the answer to: {reply.question}"))


@task.command("explain", cls=Command, example="orchestra task explain level6/core")
@click.argument("task_id", metavar="TASK")
@click.pass_context
def explain(context: click.Context, task_id: str) -> None:
    """Say why a task is not running."""
    from orchestra.usecases import TaskParams

    session = session_of(context)
    reply = session.ask(lambda use_cases: use_cases.explain(TaskParams(task_id)))
    session.render.show(reply, lambda: session.render.line(f"{reply.task_id} is {reply.status}: {reply.explanation}"))


@task.command("retry", cls=Command, example="orchestra task retry level6/core")
@click.argument("task_ids", nargs=-1, required=True, metavar="TASK...")
@click.pass_context
def retry(context: click.Context, task_ids: tuple[str, ...]) -> None:
    """Revive failed or cancelled tasks and what they blocked."""
    from orchestra.usecases import TaskParams

    session = session_of(context)

    async def revive(use_cases: UseCases) -> None:
        for each in task_ids:
            reply = await use_cases.retry(TaskParams(each))
            human = f"{reply.task_id} {reply.status}; revived: {', '.join(reply.revived) or 'nothing'}"
            session.render.show(reply, lambda words=human: session.render.line(words))  # type: ignore[misc]

    session.ask(revive)
