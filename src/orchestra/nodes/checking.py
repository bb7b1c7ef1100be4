"""The control side of `orchestra.stage.checks`: an order's checks, run on a node without its agent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from orchestra.core.model import CheckResult
from orchestra.errors import NodeFailed
from orchestra.nodes.transport import MS, Channel, Transport

FOLDER: Final = "merged"
"""Below the attempt's folder: what these checks print is kept apart from what the attempt printed."""
START_MS: Final = 60_000
"""Until the program runs, and has ended what an earlier one left."""
END_MS: Final = 15_000
"""Beyond its grace: what the kernel does not end in ten seconds is left."""
ANSWER_BYTES_MAX: Final = 16 << 20


async def run_checks(transport: Transport, argv: Sequence[str], spec: dict[str, Any]) -> tuple[CheckResult, ...]:
    """Runs the checks of `spec` by the program `argv`. Cancelled, it has what runs ended before it goes.

    Raises:
        NodeFailed: They did not come to their end.
        NodeUnreachable: The machine cannot be reached.
    """
    ending_ms = int(spec["grace_ms"]) + END_MS
    longest_ms = START_MS + sum(int(check["timeout_ms"]) + ending_ms for check in spec["checks"])
    channel = await transport.open(argv)
    try:
        channel.write(msgspec.json.encode(spec) + b"\n")
        async with asyncio.timeout(longest_ms / MS):
            answer = await _answer(channel)
    except TimeoutError as late:
        raise NodeFailed(f"the checks had not ended after {longest_ms} ms, long after their own limits", hint="is it overloaded?") from late
    finally:
        await _end(channel, ending_ms)
    try:
        found = msgspec.json.decode(answer.rstrip(b"\n").rpartition(b"\n")[2], type=tuple[CheckResult, ...], strict=False)
    except msgspec.MsgspecError as broken:
        said = channel.errors().decode(errors="replace").strip()[-300:]
        raise NodeFailed(f"the program that runs checks gave no results: {said or answer[-300:]!r}") from broken
    if len(found) < len(spec["checks"]):
        raise NodeFailed("the checks were ended before they had come to their end")
    return found


async def _answer(channel: Channel) -> bytes:
    found = bytearray()
    while part := await channel.read():
        found += part
        if len(found) > ANSWER_BYTES_MAX:
            raise NodeFailed("the program that runs checks says more than it can have to say")
    return bytes(found)


async def _end(channel: Channel, ending_ms: int) -> None:
    """A further line is the wish that it ends. It is waited for, as a program that is killed cannot end what it started."""
    try:
        channel.write(b"stop\n")
        async with asyncio.timeout(ending_ms / MS):
            await channel.wait_closed()
    except TimeoutError:
        return
    finally:
        await channel.close()
