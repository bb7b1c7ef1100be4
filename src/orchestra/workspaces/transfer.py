"""Commits from one machine to another, as a git bundle over the two transports: no server, no remote, no key of either machine on the other.

Only what the other side lacks is sent. Where it has nothing yet and the history is large, the commit itself is sent without its history, and the repository
made there is a shallow one. The bytes go through this process in frames and are never all in memory here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec

from orchestra.errors import BadInput, NodeFailed, NotFound
from orchestra.ids import AttemptId, check_name
from orchestra.nodes.transport import MS, Channel, Transport
from orchestra.workspaces.calling import MachineOptions, answer_of, argv, call, request_line
from orchestra.workspaces.names import attempt_parts

GIB: Final = 1 << 30
LINE_BYTES_MAX: Final = 1 << 20


class TransferOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one transfer."""

    history_bytes_max: int = 256 << 20
    """Repositories larger than this are sent without their history."""
    bundle_bytes_max: int = 4 * GIB
    timeout_ms: int = 1_800_000


class End(msgspec.Struct, frozen=True):
    """One end of a transfer: a repository on a machine."""

    transport: Transport
    machine: MachineOptions
    repo: str
    """May begin with `~/`."""


class Transferred(msgspec.Struct, frozen=True):
    """What was sent."""

    refs: dict[str, str]
    """Ref on the target -> commit."""
    bytes: int
    repo: str
    """The target's folder, absolute."""


class _Have(msgspec.Struct):
    repo: str
    have: list[str]
    shallow: list[str]
    object_format: str


class _Source(msgspec.Struct):
    object_format: str
    refs: dict[str, str]


class _Sent(msgspec.Struct):
    bytes: int


class _Received(msgspec.Struct):
    bytes: int


def mirror_folder(machine: MachineOptions, name: str) -> str:
    """Returns where a node keeps its own copy of a repository of the control machine."""
    return f"{machine.folder}/repos/{check_name(name, field='repository')}.git"


def result_ref(attempt: AttemptId) -> str:
    """Returns the ref under which what an attempt did on a node is kept on the control machine."""
    return f"refs/orchestra/results/{'/'.join(attempt_parts(attempt))}"


async def send_repo(
    source: End, target: End, refs: Mapping[str, str] | None = None, *, options: TransferOptions | None = None
) -> Transferred:
    """Brings a repository to another machine, or what is new in it. The target's repository is made if it is not there.

    Args:
        source: The repository.
        target: Where it goes; `mirror_folder` names a good place.
        refs: Branches on the target -> commits. None: its HEAD, as `refs/heads/start`.
        options: Limits.
    """
    found = await call(source.transport, source.machine, "send_facts", {"repo": source.repo, "refs": ["HEAD"]}, _Source)
    if refs is None and not found.refs["HEAD"]:
        raise NotFound(f"{source.repo} has no commit yet", hint="commit something first")
    wanted = {"refs/heads/start": found.refs["HEAD"]} if refs is None else dict(refs)
    return await send_commits(source, target, wanted, make=found.object_format, force=True, options=options)


async def fetch_back(source: End, target: End, results: Mapping[AttemptId, str], *, options: TransferOptions | None = None) -> Transferred:
    """Brings attempts' commits from a node to the repository they came from, under `refs/orchestra/results/<plan>/<task>.<attempt>`.

    What an agent made is checked object by object. A result that is there already never changes.

    Args:
        source: The node's repository.
        target: The repository on the control machine.
        results: What was collected on the node: attempt -> commit.
        options: Limits.
    """
    refs = {result_ref(attempt): sha for attempt, sha in results.items()}
    return await send_commits(source, target, refs, strict=True, options=options)


async def send_commits(
    source: End,
    target: End,
    refs: Mapping[str, str],
    *,
    make: str = "",
    strict: bool = False,
    force: bool = False,
    options: TransferOptions | None = None,
) -> Transferred:
    """Sends commits and puts refs on them, all or (if it fails) none of the new objects under a ref.

    Raises:
        Refused: A ref is at another commit on the target and `force` is not set, or a limit was reached.
        NotFound: The source lacks a commit, or an end is no repository.
        NodeFailed: It broke off; asking again goes on from what arrived whole.
    """
    if not refs:
        raise BadInput("there is nothing to send", field="refs")
    options = options or TransferOptions()
    asked = {"repo": target.repo, "make": bool(make), "object_format": make or "sha1"}
    there = await call(target.transport, target.machine, "receive_facts", asked, _Have)
    sending: dict[str, Any] = {"repo": source.repo, "wanted": dict(refs), "have": there.have, "shallow": there.shallow}
    sending["history_bytes_max"] = options.history_bytes_max
    receiving: dict[str, Any] = {"repo": target.repo, "wanted": dict(refs), "strict": strict, "force": force, "mirror": bool(make)}
    receiving["bundle_bytes_max"] = options.bundle_bytes_max
    async with _channel(source, "send", sending) as giving, _channel(target, "receive", receiving) as taking:
        try:
            async with asyncio.timeout(options.timeout_ms / MS):
                await _pump(giving, taking)
                sent = answer_of(await _rest(giving), giving[0].errors(), None, _Sent)
                received = answer_of(await _rest(taking), taking[0].errors(), None, _Received)
        except TimeoutError as late:
            raise NodeFailed(f"sending commits to {target.repo} took longer than {options.timeout_ms} ms", hint="try again") from late
    if sent.bytes != received.bytes:
        raise NodeFailed(f"{sent.bytes} bytes were sent and {received.bytes} arrived", hint="try again")
    return Transferred(dict(refs), received.bytes, there.repo)


Line = tuple[Channel, bytearray]
"""A channel and what was read from it and not used yet."""


@contextlib.asynccontextmanager
async def _channel(end: End, operation: str, arguments: dict[str, Any]) -> AsyncIterator[Line]:
    channel = await end.transport.open(argv(end.machine))
    try:
        channel.write(request_line(end.machine, operation, arguments))
        yield channel, bytearray()
    finally:
        await channel.close()


async def _pump(giving: Line, taking: Line) -> None:
    """Passes the header and all frames on; stops at what is neither, as that begins the sender's answer."""
    channel, pending = giving
    header = await _line(giving)
    if not header.startswith(b"{"):
        return
    taking[0].write(header)
    while True:
        line = await _line(giving)
        if not line.strip().isdigit():
            return
        taking[0].write(line)
        left = int(line)
        if not left:
            break
        while left:
            if not pending:
                more = await channel.read()
                if not more:
                    return
                pending += more
            part = bytes(pending[:left])
            del pending[: len(part)]
            left -= len(part)
            taking[0].write(part)
            await taking[0].drain()
    await taking[0].drain()


async def _line(source: Line) -> bytes:
    channel, pending = source
    while b"\n" not in pending:
        more = await channel.read()
        if not more or len(pending) > LINE_BYTES_MAX:
            raise NodeFailed(f"the bundle broke off: {channel.errors().decode(errors='replace').strip()[-300:]}", hint="try again")
        pending += more
    line, _, rest = bytes(pending).partition(b"\n")
    pending[:] = rest
    return line + b"\n"


async def _rest(source: Line) -> bytes:
    """Returns all that still comes."""
    channel, pending = source
    while more := await channel.read():
        pending += more
        if len(pending) > LINE_BYTES_MAX:
            raise NodeFailed("an answer was longer than any of ours")
    return bytes(pending)
