"""`orchestra node trust`: the one way a machine's SSH host key becomes a known one. A person compares it first."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

import click

from orchestra.edges.cli.grammar import Command, session_of
from orchestra.edges.cli.render import Face, Styled
from orchestra.errors import BadInput, HostKeyRefused, Refused

if TYPE_CHECKING:
    from orchestra.bootstrap.trust import KeyOffer
    from orchestra.edges.cli.session import Session

FINGERPRINT: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}=?")
KEY_FILES: Final = {"ssh-ed25519": "ed25519", "ssh-rsa": "rsa"}


@click.command(
    "trust",
    cls=Command,
    example="orchestra node trust majin\norchestra node trust majin --fingerprint SHA256:n7cFa...\norchestra node trust ai@10.0.0.2:2222 --yes",
)
@click.argument("node", metavar="NAME|USER@HOST[:PORT]")
@click.option("--fingerprint", metavar="SHA256:...", help="Trust the key if it has this fingerprint; asks nothing.")
@click.option("--replace", is_flag=True, help="Give up the key that was known before.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def trust(context: click.Context, node: str, fingerprint: str | None, replace: bool, yes: bool) -> None:
    """Show the SSH key of a machine, and trust it.

    Compare the fingerprint with what the machine itself says, or its owner. A key that is another than the known one is refused, unless
    --replace says that you know why it changed.
    """
    import asyncio

    if fingerprint is not None and FINGERPRINT.fullmatch(fingerprint) is None:
        raise BadInput(
            f"{fingerprint[:60]!r} is not a fingerprint", field="fingerprint", hint="write it as `ssh-keygen -lf` prints it: SHA256:..."
        )
    session = session_of(context)
    settings = session.wiring.load_settings(session.root, session.flags)
    offer = asyncio.run(session.wiring.offered_key(session.root, settings, node))
    if fingerprint is not None and fingerprint.rstrip("=") != offer.fingerprint.rstrip("="):
        raise HostKeyRefused(
            f"{offer.where} shows {offer.kind} {offer.fingerprint}, not {fingerprint}",
            field="fingerprint",
            hint="nothing was trusted; is it of another kind of key, or is somebody answering in its place?",
        )
    if offer.state == "new" or (offer.state == "changed" and replace):
        _confirm(session, offer, asked=not yes and fingerprint is None)
    added = session.wiring.trust_key(offer, replace=replace)
    value = {
        "node": offer.name,
        "host": offer.where,
        "kind": offer.kind,
        "fingerprint": offer.fingerprint,
        "file": offer.file,
        "added": added,
        "replaced": added and offer.state == "changed",
    }
    words = f"added to {offer.file}" if added else "known already"
    session.render.show(value, lambda: session.render.line(f"{offer.where}: {offer.kind} {offer.fingerprint} is {words}"))


def _confirm(session: Session, offer: KeyOffer, *, asked: bool) -> None:
    """Shows the key and asks.

    Raises:
        BadInput: There is nobody to ask.
        Refused: It is another key than the machine's own.
    """
    render = session.render
    if offer.state == "changed":
        render.note(Styled("another key: ", "red"), offer.detail)
    render.note(f"machine      {offer.where}")
    render.note(f"key          {offer.kind}")
    render.note("fingerprint  ", Styled(offer.fingerprint, "bold"))
    if not asked:
        return
    name = KEY_FILES.get(offer.kind, "ecdsa")
    render.note(f"Compare it with what that machine says: ssh-keygen -lf /etc/ssh/ssh_host_{name}_key.pub")
    if not sys.stdin.isatty() or session.face is not Face.HUMAN:
        raise BadInput(
            f"the key of {offer.where} has to be compared: {offer.kind} {offer.fingerprint}",
            field="fingerprint",
            hint="repeat with --fingerprint and what that machine says, or with --yes if you have compared it",
        )
    if not click.confirm("Is it the same?", err=True):
        raise Refused(f"the key of {offer.where} is not trusted; nothing was changed", field="fingerprint")
