"""`orchestra rehearse`: a plan with its windows, worktrees, checks and merges, and without a model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click
import msgspec

from orchestra.edges.cli.grammar import Command, session_of
from orchestra.edges.cli.run import read_plan
from orchestra.errors import BadInput
from orchestra.rehearse import loopback, venue
from orchestra.rehearse.model import mock_model
from orchestra.rehearse.plan import Cast, cast_of, rehearsed
from orchestra.rehearse.scenario import Scene, read_scenario
from orchestra.rehearse.script import fixtures_of
from orchestra.views import REHEARSAL

if TYPE_CHECKING:
    from orchestra.edges.cli.session import Session
    from orchestra.intake.planfile import PlanDocument
    from orchestra.views import TaskDetail

CLI: Final = "cli"
STAND_IN: Final = "rehearsal"
AUTO: Final = "auto"
SCENARIO: Final = "scenario"
TESTS_SAID: Final = r"(?:^|\s)(\d+) passed|^Ran (\d+) tests? "
SETUP: Final = "run `bash scripts/setup_agents.sh`, or rehearse --with rehearsal"


class Wanted(NamedTuple):
    """What was asked for."""

    path: Path
    document: PlanDocument
    value: dict[str, object]
    scenes: Mapping[str, Scene]
    agents: int | None
    mode: str
    folder: Path | None
    keep: bool
    enclosed: bool


class Merged(msgspec.Struct, frozen=True):
    """What came together in a repository."""

    repository: str
    branch: str
    files: int
    """Made or changed by the plan's tasks."""


class RehearsalEnd(msgspec.Struct, frozen=True, tag_field="type", tag="rehearsal"):
    """The last line of `orchestra rehearse --json`."""

    folder: str
    agents: str
    """`cli` or `rehearsal`."""
    enclosed: bool
    """Nothing could leave: it ran in a network namespace of its own."""
    exit_code: int
    at_once_max: int
    """Most attempts that ran at the same time."""
    tests_passed: int
    """As the last check that counts tests said; 0 if none did."""
    merged: tuple[Merged, ...]


@click.command(
    "rehearse", cls=Command, example="orchestra rehearse examples/level6/plan.yaml\norchestra rehearse plan.yaml --with cli --agents 6"
)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--scenario", type=click.Path(path_type=Path), metavar="DIR", help="What was recorded; default is `scenario` beside the plan."
)
@click.option("--agents", type=click.IntRange(1), metavar="N", help="Agents in all, each for every kind; default is what the plan says.")
@click.option(
    "--with",
    "mode",
    type=click.Choice((AUTO, CLI, STAND_IN)),
    default=AUTO,
    help="Who plays: the real claude and codex with a mock model (cli), the stand-in program (rehearsal), or whichever can.",
)
@click.option(
    "--folder", type=click.Path(path_type=Path), metavar="DIR", help="Where it happens; default is a new folder in /tmp. It stays."
)
@click.option("--keep", is_flag=True, help="Leave the windows and agents as they are at the end.")
@click.option("--enclosed", is_flag=True, hidden=True)
@click.pass_context
def rehearse(
    context: click.Context,
    plan: Path,
    scenario: Path | None,
    agents: int | None,
    mode: str,
    folder: Path | None,
    keep: bool,
    enclosed: bool,
) -> int:
    """Run a plan with recorded agents: no model, no key, no cost.

    Everything but the models is real: windows, worktrees, commands, checks and merges. It happens in a root and a copy of the repository of its
    own, with keys that are none, and where the system allows it in a network that has no way out.

    Ends like `run`.
    """
    from orchestra.intake.document import parse

    session = session_of(context)
    settings = session.wiring.load_settings(session.root, session.flags)  # they may define agent kinds that the plan names
    text, document = read_plan(plan, session.wiring.task_defaults(settings))
    value = parse(text, source=str(plan)).value
    place = scenario or plan.parent / SCENARIO
    scenes = read_scenario(place) if scenario is not None or place.is_dir() else {}
    unknown = sorted(set(scenes) - {draft.id for draft in document.drafts})
    if unknown:
        raise BadInput(f"the plan has no task {unknown[0]!r}", field="scenario", hint="a scenario's folders are called like the tasks")
    if not enclosed and loopback.can_enclose():
        os.execv(*_again(sys.argv[1:]))
    return perform(session, Wanted(plan, document, value, scenes, agents, mode, folder, keep, enclosed))


def _again(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Returns the program that does the same in a network namespace, and its arguments."""
    argv = loopback.enclosed([sys.executable, "-m", "orchestra", *arguments, "--enclosed"])
    return argv[0], argv


def perform(session: Session, wanted: Wanted) -> int:
    """Prepares the venue, runs the plan there, and tells what came of it; returns the exit code."""
    cast, programs = choose(session, wanted)
    folder = wanted.folder.absolute() if wanted.folder else Path(tempfile.mkdtemp(prefix="rehearsal-", dir="/tmp"))
    venue.prepare(folder)
    env = venue.environment(folder, programs.folders if cast.kinds else (), Path(sys.executable))
    places = venue.copy_workspaces(wanted.document.drafts, folder)
    value = rehearsed(wanted.value, wanted.document, cast, {each.original: str(each.here) for each in places}, wanted.agents)
    plan = venue.write_plan(folder, wanted.path.stem, value)
    _announce(session, wanted, cast, folder)
    fixtures = fixtures_of(cast.spoken, {path for each in places for path in venue.files_there(each)})
    with mock_model(programs.mock, fixtures, folder, env) if cast.kinds else nullcontext("") as address:
        (folder / "root" / "config" / "orchestra.yaml").write_text(venue.settings_text(address, cast.kinds), encoding="utf-8")
        code = _run(session, plan, folder, env, keep=wanted.keep)
    return _tell(session, wanted, cast, folder, places, code)


def choose(session: Session, wanted: Wanted) -> tuple[Cast, venue.Programs]:
    """Returns who plays, and with which programs.

    Raises:
        BadInput: The real programs were asked for, and one is missing.
    """
    real = cast_of(wanted.document, wanted.scenes, real=True)
    programs = venue.find_programs(real.kinds, (Path.cwd(), wanted.path.parent.absolute(), Path(__file__).resolve().parent))
    if wanted.mode == STAND_IN or not real.kinds:
        if wanted.mode == CLI:
            raise BadInput("no task of this plan has a scene for claude or codex", field="with", hint="name a --scenario that has")
        return cast_of(wanted.document, wanted.scenes, real=False), programs
    if not programs.missing:
        return real, programs
    if wanted.mode == CLI:
        raise BadInput(f"{', '.join(programs.missing)} cannot be found", field="with", hint=SETUP)
    session.render.note(
        f"{', '.join(programs.missing)} cannot be found: the stand-in program plays; {SETUP.partition(',')[0]} for the real ones"
    )
    return cast_of(wanted.document, wanted.scenes, real=False), programs


def _announce(session: Session, wanted: Wanted, cast: Cast, folder: Path) -> None:
    who = f"the real {' and '.join(cast.kinds)} ask a mock model" if cast.kinds else "a stand-in program plays the agents"
    network = "in a network with no way out" if wanted.enclosed else "with keys that are none (this system cannot close the network off)"
    missing = [task for task, scene in cast.played.items() if scene is None]
    session.render.note(f"{REHEARSAL} of {wanted.path}: {who}, {network}; all of it is in {folder}")
    if missing:
        session.render.note(f"nothing is recorded for {', '.join(missing[:5])}: the files that such a task declares are made up")


def _run(session: Session, plan: Path, folder: Path, env: Mapping[str, str], *, keep: bool) -> int:
    """Runs `orchestra run` with the clean environment. Ctrl-C is its business; this process waits for it."""
    flags = [f"--set={path}={text}" for path, text in session.flags.items()]
    faces = [name for name, on in (("--json", session.json), ("--quiet", session.quiet), ("--verbose", session.verbose)) if on]
    argv = [
        sys.executable,
        "-m",
        "orchestra",
        "--root",
        str(folder / "root"),
        "run",
        str(plan),
        *flags,
        *faces,
        *(["--keep"] if keep else []),
    ]
    sys.stdout.flush()
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return subprocess.run(argv, env=dict(env), check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def _tell(session: Session, wanted: Wanted, cast: Cast, folder: Path, places: Sequence[venue.Place], code: int) -> int:
    plan = wanted.document.name
    details = _details(session, folder / "root", plan)
    found = [(place, come) for place in places if (come := venue.merged(place, plan)) is not None]
    end = RehearsalEnd(
        folder=str(folder),
        agents=CLI if cast.kinds else STAND_IN,
        enclosed=wanted.enclosed,
        exit_code=code,
        at_once_max=at_once_max(details),
        tests_passed=passed_in(details),
        merged=tuple(Merged(str(place.here), branch, files) for place, (branch, files) in found),
    )

    def human() -> None:
        tests = f", {end.tests_passed} tests passed" if end.tests_passed else ""
        session.render.line(f"{REHEARSAL}: up to {end.at_once_max} tasks at once{tests}")
        for each in end.merged:
            session.render.line(f"branch: {each.branch} in {each.repository}: {each.files} files")
        session.render.line(f"folder: {end.folder}")

    session.render.show(end, human)
    return code


def _details(session: Session, root: Path, plan: str) -> tuple[TaskDetail, ...]:
    """Returns what the ledger says of the plan's tasks; nothing where the run came to nothing."""
    import asyncio

    from orchestra.errors import OrchestraError
    from orchestra.usecases import PlanNameParams, TaskParams

    async def ask() -> tuple[TaskDetail, ...]:
        async with session.wiring.connect(root) as use_cases:
            view = await use_cases.plan(PlanNameParams(plan))
            return tuple([await use_cases.task(TaskParams(task.task)) for task in view.tasks])

    try:
        return asyncio.run(ask())
    except OrchestraError:
        return ()


def at_once_max(details: Sequence[TaskDetail]) -> int:
    """Returns the most attempts that were in the hands of agents at the same time."""
    attempts = [attempt for detail in details for attempt in detail.attempts if attempt.ended_ms]
    edges = sorted(edge for each in attempts for edge in ((each.assigned_ms, 1), (each.ended_ms, -1)))
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def passed_in(details: Sequence[TaskDetail]) -> int:
    """Returns how many tests passed by the last check that says so in the words of pytest or unittest."""
    import re

    passed = 0
    for detail in details:
        for attempt in detail.attempts:
            for check in attempt.checks:
                found = re.findall(TESTS_SAID, "\n".join(check.tail), re.MULTILINE) if check.passed else []
                passed = int(next(filter(None, found[-1]))) if found else passed
    return passed
