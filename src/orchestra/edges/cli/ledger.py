"""`orchestra ledger`: show, verify, repair, export. Works on the files; repair wants that no coordinator runs."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestra.edges.cli.grammar import Command, Group, session_of
from orchestra.edges.cli.render import Face, Renderer, Styled, mark
from orchestra.edges.cli.session import Session
from orchestra.errors import FACES, BadInput, LedgerDamaged, LedgerLocked

if TYPE_CHECKING:
    from orchestra.ledgers.care import RepairPlan


@click.group("ledger", cls=Group, example="orchestra ledger verify")
def ledger() -> None:
    """Read, check and repair the ledger."""


@ledger.command("show", cls=Command, example="orchestra ledger show --after 100 --limit 20")
@click.option("--after", type=click.IntRange(0), default=0, metavar="SEQ", help="Start after this event.  [default: 0]")
@click.option("--limit", type=click.IntRange(1), default=100, metavar="N", help="At most that many.  [default: 100]")
@click.pass_context
def show(context: click.Context, after: int, limit: int) -> None:
    """Print events, oldest first."""
    session = session_of(context)
    for view in session.wiring.ledger_care(session.root).show(after, limit):
        if session.face is Face.JSON:
            session.render.json(view)
        else:
            session.render.line(Styled(f"{view.seq:>7} {moment(view.at_ms)} ", "dim"), bytes(view.event).decode())


def moment(at_ms: int) -> str:
    """Returns a time stamp for people, in UTC."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


@ledger.command("verify", cls=Command, example="orchestra ledger verify")
@click.pass_context
def verify(context: click.Context) -> int:
    """Read everything and check it; changes nothing.

    Ends with 65 if something is wrong.
    """
    session = session_of(context)
    found = session.wiring.ledger_care(session.root).verify()

    def human() -> None:
        session.render.line(
            mark(found.ok), f" {found.events} events intact" + (f", the last of {moment(found.at_ms)} UTC" if found.at_ms else "")
        )
        for problem in found.problems:
            session.render.line("  ", problem)
        if not found.ok:
            session.render.line("  `orchestra ledger repair` says what can be saved")

    fields = ("events", "at_ms", "stored_seq", "mark_seq", "problems")
    session.render.show({"ok": found.ok, "hash": found.hash.hex(), **{name: getattr(found, name) for name in fields}}, human)
    return 0 if found.ok else FACES[LedgerDamaged.code].exit_code


@ledger.command("repair", cls=Command, example="orchestra ledger repair --accept-data-loss")
@click.option("--accept-data-loss", is_flag=True, help="Go on although events are lost for good.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def repair(context: click.Context, accept_data_loss: bool, yes: bool) -> None:
    """Make a damaged ledger usable again.

    Says first exactly what would be lost, and asks. The damaged files are kept.
    """
    session = session_of(context)
    if session.wiring.coordinator_running(session.root):
        raise LedgerLocked(f"an orchestra is running for {session.root}", hint="end it first: `orchestra down`")
    care = session.wiring.ledger_care(session.root)
    plan = care.plan_repair()
    if not plan.problems:
        session.render.show(_told(plan, None, done=False), lambda: session.render.line(f"{plan}; nothing to repair"))
        return
    session.render.note(str(plan))
    if plan.lost_count and not accept_data_loss:
        raise LedgerDamaged(
            f"a repair would lose {plan.lost_count} events for good: {plan.lost_first} to {plan.lost_last}",
            hint="restore a backup (`orchestra restore`), or repeat with --accept-data-loss",
        )
    _confirm(session, yes)
    kept = care.repair(plan, accept_data_loss=accept_data_loss)
    session.render.show(_told(plan, kept, done=True), lambda: _repaired(session.render, plan, kept))


def _confirm(session: Session, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty() or session.face is not Face.HUMAN:
        raise BadInput("a repair has to be confirmed", field="yes", hint="look at what it would do, then repeat with --yes")
    click.confirm("Repair it so?", abort=True, err=True)


def _told(plan: RepairPlan, kept: Path | None, *, done: bool) -> dict[str, Any]:
    lost = {"lost_first": plan.lost_first, "lost_last": plan.lost_last, "lost_count": plan.lost_count}
    return {
        "repaired": done,
        "events_kept": plan.keep.seq,
        **lost,
        "problems": plan.problems,
        "damaged_files": None if kept is None else str(kept),
    }


def _repaired(render: Renderer, plan: RepairPlan, kept: Path | None) -> None:
    render.line(f"repaired: {plan.keep.seq} events, {plan.lost_count} lost")
    if kept is not None:
        render.line(f"the damaged files are in {kept}")


@ledger.command("export", cls=Command, example="orchestra ledger export events.jsonl")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.pass_context
def export(context: click.Context, out: Path) -> None:
    """Write every event as a line of JSON."""
    session = session_of(context)
    count = session.wiring.ledger_care(session.root).export(out)
    session.render.show({"path": str(out), "events": count}, lambda: session.render.line(f"{count} events are in {out}"))
