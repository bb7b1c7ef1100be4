"""`orchestra backup` and `orchestra restore`: the ledger as one file, and back."""

from __future__ import annotations

from pathlib import Path

import click

from orchestra.edges.cli.grammar import Command, session_of
from orchestra.errors import LedgerLocked

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("backup", cls=Command, example="orchestra backup /backups/orchestra-monday.db")
@click.argument("target", type=FILE)
@click.pass_context
def backup(context: click.Context, target: Path) -> None:
    """Copy the ledger into one file.

    TARGET must not exist. The orchestra may run on meanwhile.
    """
    from orchestra.usecases import BackupReply

    session = session_of(context)
    whole = target.absolute()
    reply = BackupReply(str(whole), session.wiring.backup(session.root, whole))
    session.render.show(reply, lambda: session.render.line(f"{reply.events} events are in {reply.path}"))


@click.command("restore", cls=Command, example="orchestra restore /backups/orchestra-monday.db --root .codex")
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Replace a ledger that is there already; it is kept beside the new one.")
@click.pass_context
def restore(context: click.Context, archive: Path, force: bool) -> None:
    """Put a backup in the place of the ledger.

    No orchestra may be running for the root.
    """
    session = session_of(context)
    if session.wiring.coordinator_running(session.root):
        raise LedgerLocked(f"an orchestra is running for {session.root}", hint="end it first: `orchestra down`")
    kept = session.wiring.restore(archive.absolute(), session.root, force=force)

    def human() -> None:
        session.render.line(f"the ledger of {session.root} is that of {archive}")
        if kept is not None:
            session.render.line(f"the one before is kept in {kept}")

    session.render.show({"root": str(session.root), "archive": str(archive), "replaced": None if kept is None else str(kept)}, human)
