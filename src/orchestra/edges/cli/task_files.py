"""`orchestra task diff|result|artifacts`: what a task left, read from its result folder; so they work while the orchestra runs and after it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from orchestra.edges.cli.grammar import Command, session_of
from orchestra.edges.cli.render import Part, Renderer, Styled, mark, status_word
from orchestra.edges.cli.session import Session
from orchestra.edges.cli.task_text import merged
from orchestra.errors import BadInput, NotFound, PortFailed
from orchestra.files import write_atomically

if TYPE_CHECKING:
    from orchestra.protocol.patch import FilePatch
    from orchestra.views import AttemptView, TaskDetail

WHAT: Final = {
    "result.json": "what it came to, for programs",
    "diff.patch": "what it changed, for `git apply`",
    "test_report.html": "its checks and tests, for a browser",
    "junit.xml": "its tests, for other tools",
    "execution.log": "what its agent printed, secrets masked",
    "transcript.jsonl": "what its agent said and did, secrets masked",
}
OVER: Final = ("completed", "failed", "cancelled")
BAR_COLUMNS: Final = 40


def detail_of(session: Session, task_id: str) -> TaskDetail:
    """Returns what is known of a task."""
    from orchestra.usecases import TaskParams

    return session.ask(lambda use_cases: use_cases.task(TaskParams(task_id)))


def content(path: Path) -> bytes | None:
    """Returns a file's content, or None if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise PortFailed(f"{path} cannot be read: {exc.strerror}") from exc


def not_yet(detail: TaskDetail, what: str) -> NotFound:
    """Returns why a task has no such file, and what to do about it."""
    task = detail.task
    if task.status not in OVER:
        return NotFound(
            f"{task.task} is {task.status} and has no {what} yet", field="task", hint=f"watch it: orchestra task logs {task.task} --follow"
        )
    return NotFound(
        f"{task.task} has no {what}",
        field="task",
        hint=f"`orchestra task artifacts {task.task}` lists what it has; it is written by a running coordinator",
    )


# --- diff ----------------------------------------------------------------------------------------------------------------


@click.command("diff", cls=Command, example="orchestra task diff level6/core --stat")
@click.argument("task_id", metavar="TASK")
@click.option("--stat", is_flag=True, help="Only the files, with how many lines were added and removed.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Which attempt; default is the one that counts, or the last.")
@click.pass_context
def diff(context: click.Context, task_id: str, stat: bool, attempt: int | None) -> None:
    """Show what a task changed, as a patch."""
    from orchestra.protocol.patch import files_of

    session = session_of(context)
    detail = detail_of(session, task_id)
    name = "diff.patch" if attempt is None else f"diff.{attempt}.patch"
    found = content(Path(detail.results) / name)
    if found is None:
        raise no_diff(detail, attempt)
    patch = found.decode("utf-8", "backslashreplace")
    if stat:
        files = files_of(patch)
        session.render.show(files, lambda: show_stat(session.render, files))
        return
    if session.json:
        session.render.json({"task": detail.task.task, "attempt": attempt, "files": files_of(patch), "patch": patch})
    elif session.render.on_terminal:
        show_patch(session.render, patch)
    else:
        sys.stdout.buffer.write(found)  # piped: every byte as it is, so that it can be applied


def no_diff(detail: TaskDetail, attempt: int | None) -> NotFound:
    """Returns why there is no patch."""
    task = detail.task.task
    numbers = [each.number for each in detail.attempts]
    if attempt is not None and attempt not in numbers:
        known = f"it has 1 to {len(numbers)}" if numbers else "it was not tried yet"
        return NotFound(f"{task} has no attempt {attempt}", field="attempt", hint=known)
    if not detail.workspace:
        return NotFound(
            f"{task} works in a private folder that is empty at first, so there is nothing to compare with",
            field="task",
            hint="give it a `workspace`, and each attempt has a worktree or copy of that",
        )
    if not detail.isolated:
        return NotFound(
            f"{task} works in a folder that others change too, so what it changed cannot be told",
            field="task",
            hint="give it `isolation: worktree`, and each attempt has a worktree of its own",
        )
    kept = next((each.kept for each in detail.attempts if each.kept and attempt in (None, each.number)), "")
    if kept.startswith("refs/"):
        return NotFound(f"{task} has no patch", field="task", hint=f"what it did is kept: git log -p {kept}")
    return not_yet(detail, "patch")


def show_patch(render: Renderer, patch: str) -> None:
    """Writes a patch in colours."""
    body = False
    for line in patch.removesuffix("\n").split("\n"):
        if line.startswith("diff --git "):
            body = False
        style = "bold" if not body else {"+": "green", "-": "red"}.get(line[:1], "")
        if line.startswith("@@ "):
            body, style = True, "cyan"
        render.line(Styled(line, style))


def show_stat(render: Renderer, files: tuple[FilePatch, ...]) -> None:
    """Writes the files of a patch with bars, as git does."""
    if not files:
        render.line("nothing was changed")
        return
    most = max(1, *(file.added + file.removed for file in files))
    widest = max(len(file.path) for file in files)
    for file in files:
        count = "binary" if file.binary else str(file.added + file.removed)
        added, removed = (-(-number * BAR_COLUMNS // max(most, BAR_COLUMNS)) for number in (file.added, file.removed))
        word = "" if file.change == "changed" else f" ({file.change})"
        render.line(f"{file.path.ljust(widest)} | {count.rjust(6)} ", Styled("+" * added, "green"), Styled("-" * removed, "red"), word)
    number, added, removed = len(files), sum(file.added for file in files), sum(file.removed for file in files)
    render.line(f"{number} {'file' if number == 1 else 'files'}, {added} {'line' if added == 1 else 'lines'} added, {removed} removed")


# --- result --------------------------------------------------------------------------------------------------------------


@click.command("result", cls=Command, example="orchestra task result level6/core --json")
@click.argument("task_id", metavar="TASK")
@click.pass_context
def result(context: click.Context, task_id: str) -> None:
    """Show what a task came to, in the form a parent program gets it."""
    import msgspec

    session = session_of(context)
    detail = detail_of(session, task_id)
    found = content(Path(detail.results) / "result.json")
    if found is None or detail.task.status not in OVER:
        raise not_yet(detail, "result")
    try:
        values: dict[str, Any] = msgspec.json.decode(found, type=dict[str, Any])
    except msgspec.DecodeError as exc:
        raise PortFailed(
            f"{detail.results}/result.json is not readable: {exc}", hint="remove it; the next start of the orchestra writes it again"
        ) from exc
    session.render.show(values, lambda: show_result(session.render, values, detail))


def show_result(render: Renderer, values: dict[str, Any], detail: TaskDetail) -> None:
    """Writes a result for people."""
    outcome, cost = values["result"], values["cost"]
    output = outcome["output"]
    tests = "" if output["tests_passed"] is None else f"{output['tests_passed']} passed, {output['tests_failed'] or 0} failed"
    rows: list[tuple[str, Part]] = [
        ("task", Styled(str(values["task_id"]), "bold")),
        ("status", status_word(str(values["status"]))),
        (
            "time",
            ""
            if values["duration_seconds"] is None
            else f"{values['duration_seconds']} s, from {values['started_at']} to {values['completed_at']}",
        ),
        ("agents", ", ".join(f"#{agent}" for agent in values["assigned_agents"])),
        ("counts", "" if values["primary_agent"] is None else f"what agent #{values['primary_agent']} did"),
        ("tests", tests),
        ("coverage", "" if output["coverage_percent"] is None else f"{output['coverage_percent']:g} %"),
        ("linter", "" if output["linter_errors"] is None else f"{output['linter_errors']} errors"),
        ("created", ", ".join(output["files_created"])),
        ("merged", merged(detail)),
        ("cost", f"{cost['estimated_cost_dollars']:.4f} dollars, {cost['tokens_consumed']} tokens" if cost["tokens_consumed"] else ""),
    ]
    render.fields((name, value) for name, value in rows if value)
    counted = next(
        (each for each in detail.attempts if each.number == detail.primary_attempt), detail.attempts[-1] if detail.attempts else None
    )
    show_checks(render, counted)
    for word, style in (("errors", "red"), ("warnings", "yellow")):
        for text in values[word]:
            render.line(Styled(word[:-1], style), f" {text}")


def show_checks(render: Renderer, attempt: AttemptView | None) -> None:
    """Writes the checks of the attempt that counts."""
    for check in attempt.checks if attempt is not None else ():
        render.line(mark(check.passed), f" {check.name}")


# --- artifacts -----------------------------------------------------------------------------------------------------------


@click.command(
    "artifacts",
    cls=Command,
    example="orchestra task artifacts level6/core\norchestra task artifacts level6/core execution.log\norchestra task artifacts level6/core --copy-to out",
)
@click.argument("task_id", metavar="TASK")
@click.argument("name", required=False, metavar="[NAME]")
@click.option(
    "--copy-to", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER", help="Copy them there; it is made if missing."
)
@click.pass_context
def artifacts(context: click.Context, task_id: str, name: str | None, copy_to: Path | None) -> None:
    """List a task's files; print the one that is NAMEd, or copy them."""
    session = session_of(context)
    detail = detail_of(session, task_id)
    files = files_in(Path(detail.results))
    if not files:
        raise not_yet(detail, "artifacts")
    chosen = files if name is None else [pick(files, name)]
    if copy_to is not None:
        copied = copy_files(chosen, copy_to)

        def human() -> None:
            for path in copied:
                session.render.data(path)

        session.render.show({"copied": copied}, human)
    elif name is not None:
        body = content(chosen[0]) or b""
        if session.render.on_terminal:
            session.render.data(body.decode("utf-8", "backslashreplace").removesuffix("\n"))
        else:
            sys.stdout.buffer.write(body)
    else:
        show_files(session.render, detail, files)


def show_files(render: Renderer, detail: TaskDetail, files: list[Path]) -> None:
    """Writes a table of files."""
    values = [{"name": path.name, "bytes": path.stat().st_size, "path": str(path), "what": what(path.name)} for path in files]

    def human() -> None:
        render.line(detail.results)
        rows: list[list[Part]] = [[str(each["name"]), str(each["bytes"]), str(each["what"])] for each in values]
        render.table(["file", "bytes", "what"], rows, right=("bytes",))

    render.show({"task": detail.task.task, "folder": detail.results, "artifacts": values}, human)


def files_in(folder: Path) -> list[Path]:
    """Returns the files of a result folder; what programs want first comes first."""
    order = {name: place for place, name in enumerate(WHAT)}
    try:
        found = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda path: (order.get(path.name, len(order)), path.name))


def what(name: str) -> str:
    """Returns what a file is."""
    number = name.removeprefix("diff.").removesuffix(".patch")
    return WHAT.get(name) or (f"what attempt {number} changed" if number.isdigit() else "")


def pick(files: list[Path], name: str) -> Path:
    """Returns the file of that name."""
    from orchestra.core.state import neighbour_hint

    for path in files:
        if path.name == name:
            return path
    names = [path.name for path in files]
    raise NotFound(f"there is no artifact {name!r}", field="name", hint=neighbour_hint(name, names, f"there are {', '.join(names)}"))


def copy_files(files: list[Path], target: Path) -> list[str]:
    """Copies files and returns where they are now. What is there under these names stays."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        there = [path.name for path in files if (target / path.name).exists()]
        if there:
            raise BadInput(f"{target} has {', '.join(there)} already", field="copy-to", hint="name another folder")
        for path in files:
            write_atomically(target / path.name, path.read_bytes())
    except OSError as exc:
        raise PortFailed(f"nothing can be copied to {target}: {exc.strerror}", hint="name a folder you may write to") from exc
    return [str(target / path.name) for path in files]
