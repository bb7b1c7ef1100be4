"""Host keys: which one a machine shows, whether it is the known one, and how it becomes that. Loads SSH, which the rest of bootstrap does not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from orchestra.bootstrap.nodes import LOGIN_TIMEOUT_MS, known_nodes, unknown_node
from orchestra.bootstrap.wiring import ssh_options, ssh_target
from orchestra.core.model import NodeSpec
from orchestra.errors import BadInput, HostKeyRefused, LoginRefused, NodeFailed
from orchestra.files import write_atomically
from orchestra.nodes.ssh import HostKey, SshOptions, SshTarget, SshTransport, add_known_host, offered_host_key, trust_file
from orchestra.nodes.ssh_config import Hop, read_route
from orchestra.nodes.ssh_trust import Trust, read_trust
from orchestra.settings import Settings

_ADDRESS: Final = re.compile(
    r"(?:(?P<user>[^@\s]+)@)?(?:\[(?P<six>[^\]\s]+)\]|(?P<host>[^-:@\s\[\]][^:@\s\[\]]*))(?::(?P<port>[0-9]{1,5}))?"
)

# --- whose key it shows ------------------------------------------------------------------------------------------------


class KnownLine(msgspec.Struct, frozen=True):
    """A line that names another key for the host."""

    file: str
    number: int
    key: str
    """The key as it is written there."""


class KeyOffer(msgspec.Struct, frozen=True):
    """The key that a machine shows, and what is known of it."""

    name: str
    where: str
    """The machine for people: host and port."""
    kind: str
    fingerprint: str
    state: str
    """`new`, `known`, `changed` or `revoked`."""
    detail: str
    """Of one that changed: what was known before."""
    file: str
    """Where its line belongs."""
    line: str
    names: tuple[str, ...] = ()
    """What the host is called in such files."""
    old: tuple[KnownLine, ...] = ()


def trust_target(name: str, specs: Sequence[NodeSpec]) -> SshTarget:
    """Returns the machine meant by a node's name or by `user@host:port`.

    Raises:
        BadInput: It is this machine.
        NotFound: It is neither.
    """
    known = {str(spec.id): spec for spec in specs}
    if name in known:
        if not known[name].remote:
            raise BadInput(f"node {name} is this machine, which shows no key", field="node", hint="name a node that has a host")
        return ssh_target(known[name])
    match = _ADDRESS.fullmatch(name)
    host = "" if match is None else match["six"] or match["host"]
    port = 0 if match is None else int(match["port"] or 0)
    if match is None or port > 65_535 or not (match["user"] or match["port"] or match["six"] or "." in host):
        raise unknown_node(name, known, "; any other machine is written user@host or user@host:port")
    return SshTarget(host, match["user"] or "", port)


async def offered_key(root: Path, settings: Settings, name: str) -> KeyOffer:
    """Asks a machine for its key. Nothing is trusted by that.

    Raises:
        NotFound: There is no such node.
        NodeUnreachable: It cannot be reached.
        HostKeyRefused: The key of a jump host on the way is not known.
    """
    target, options = trust_target(name, known_nodes(root, settings)), ssh_options(settings)
    hop = (await asyncio.to_thread(read_route, target, options))[-1]
    key = await offered_host_key(target, options)
    trust = await asyncio.to_thread(read_trust, hop)
    state, detail = _judge(key, trust), ""
    if not state:
        detail = await _refusal(target, options)
        state = "changed" if detail else "known"
    return KeyOffer(
        name=name,
        where=hop.where,
        kind=key.kind,
        fingerprint=key.fingerprint,
        state=state,
        detail=detail,
        file=str(trust_file(target, options)),
        line=key.line,
        names=_names(hop),
        old=tuple(KnownLine(each.file, each.number, _written(each.key.export_public_key("openssh"))) for each in trust.keys),
    )


def _written(key: bytes) -> str:
    return key.decode("ascii").split()[1]


def _names(hop: Hop) -> tuple[str, ...]:
    """What `read_trust` looks a host up by."""
    bare = hop.trust_name[1:].partition("]:")[0] if hop.trust_name.startswith("[") else hop.trust_name
    return tuple(dict.fromkeys((hop.trust_name, bare)))


def _judge(key: HostKey, trust: Trust) -> str:
    """Returns what is known of a key; nothing if only a login tells, as when the host is known by a key of another kind."""
    if any(each.get_fingerprint() == key.fingerprint for each in trust.revoked):
        return "revoked"
    if any(each.key.get_fingerprint() == key.fingerprint for each in trust.keys):
        return "known"
    return "" if trust.keys or trust.authorities else "new"


async def _refusal(target: SshTarget, options: SshOptions) -> str:
    """Returns why the host's key is refused when we log in, or nothing."""
    transport = SshTransport(target, options)
    try:
        await transport.run(["true"], timeout_ms=LOGIN_TIMEOUT_MS)
    except HostKeyRefused as refused:
        return refused.message
    except (LoginRefused, TimeoutError):
        return ""  # the key was taken before that
    finally:
        await transport.close()
    return ""


def trust_key(offer: KeyOffer, *, replace: bool) -> bool:
    """Writes the key down as that machine's; returns False if it was known already.

    Args:
        offer: What the machine showed, after a person compared it.
        replace: Give up the key that was known before.

    Raises:
        HostKeyRefused: It is revoked, or another than the known one and not to replace it.
        NodeFailed: The file cannot be written.
    """
    if offer.state == "revoked":
        raise HostKeyRefused(
            f"the host key of {offer.where} is revoked: it shows {offer.kind} {offer.fingerprint}",
            hint="somebody has marked it as stolen or lost; that machine needs a new one",
        )
    if offer.state == "known":
        return False
    if offer.state == "changed":
        if not replace:
            raise HostKeyRefused(
                offer.detail,
                hint="somebody may be answering in its place: ask whoever runs that machine; if you know why the key changed, "
                f"`orchestra node trust {offer.name} --replace`",
            )
        _forget(offer)
    return add_known_host(Path(offer.file), HostKey(offer.kind, offer.fingerprint, offer.line))


def _forget(offer: KeyOffer) -> None:
    """Takes the old keys of a host out of the files they are in."""
    for file in dict.fromkeys(line.file for line in offer.old):
        path = Path(file).resolve()  # a link stays a link
        try:
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
            kept = "".join(_without(text, [line for line in offer.old if line.file == file], offer.names))
            write_atomically(path, kept.encode("utf-8", errors="surrogateescape"), durable=True)
        except OSError as error:
            raise NodeFailed(f"the old key could not be taken out of {file}: {error.strerror}", hint="take it out by hand") from error


def _without(text: str, lines: Sequence[KnownLine], names: Sequence[str]) -> Iterator[str]:
    """Yields the lines of a file of known hosts without those of one host.

    Raises:
        NodeFailed: A line is not what it was, or names the host by a pattern that others may need.
    """
    gone = {line.number: line for line in lines}
    for number, written in enumerate(text.splitlines(keepends=True), 1):
        line = gone.get(number)
        if line is None:
            yield written
            continue
        if line.key not in written:
            raise NodeFailed(f"line {number} of {line.file} has changed meanwhile", hint="try again")
        said, rest = written.split(maxsplit=1)
        left = [] if said.startswith("|") else [name for name in said.split(",") if name.lower() not in names]
        if said == ",".join(left) or any(mark in name for name in left for mark in "*?!"):
            raise NodeFailed(f"line {number} of {line.file} is for more hosts than this one: {said}", hint="edit that line by hand")
        if left:
            yield f"{','.join(left)} {rest}"
