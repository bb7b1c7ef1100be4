"""What an attempt left on its node, fetched for people: its output, its stream of events, its test results. Bounded, and with secrets masked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from orchestra.errors import NotFound
from orchestra.ids import AttemptId
from orchestra.node import Node
from orchestra.protocol.masking import Masker, secret_values
from orchestra.protocol.text import printable

PIECE_BYTES: Final = 262_144
SPEC_BYTES_MAX: Final = 4 << 20
"""Of an order: prompts travel as files of their own."""
SESSION: Final = "session.jsonl"
"""Where a program that prints only how things are going leaves all that was said, below an attempt's folder."""
OUTPUTS: Final = ("output.jsonl.1", "output.jsonl")
"""Older part first."""
JUNIT: Final = "reports/junit.xml"
"""Where the checks of an attempt leave what their tests came to, below its folder."""


class Fetched(msgspec.Struct, frozen=True):
    """Files as they came, and what must not be seen of them."""

    output: tuple[str, ...]
    """Complete lines of output.jsonl."""
    left_out: int
    """Bytes before them."""
    junit: str
    """Empty: there is none, or it is too long."""
    stream: bool
    """The agent prints a stream of JSON events."""
    secrets: tuple[str, ...]
    session: tuple[str, ...] = ()
    """All that was said, where the events that the agent prints are not that."""


class Texts(msgspec.Struct, frozen=True):
    """Files for people. Empty: there is nothing to put into one."""

    log: str
    transcript: str
    junit: str


class _Line(msgspec.Struct):
    t: int
    s: str
    line: str
    part: bool = False


_decoder: Final = msgspec.json.Decoder(_Line)


async def fetch(node: Node, attempt: AttemptId, bytes_max: int) -> Fetched:
    """Fetches what an attempt left; what is not there is empty.

    Args:
        node: Where it ran.
        attempt: Which one.
        bytes_max: Longest output and test results. Of a longer output the end is taken; longer test results are of no use in part.

    Raises:
        NodeFailed: The node does not give it now.
    """
    folder = f"attempts/{attempt.task}/{attempt.number}"
    order = await _order(node, f"{folder}/spec.json")
    lines: list[str] = []
    left_out, room = 0, bytes_max
    for name in reversed(OUTPUTS):
        found, skipped = await _last_lines(node, f"{folder}/{name}", room)
        lines[:0] = found
        left_out += skipped
        room = max(0, room - sum(len(line) + 1 for line in found))
    junit, too_long = await _text(node, f"{folder}/{JUNIT}", bytes_max)
    env, output = order.get("env"), order.get("output")
    stream = isinstance(output, dict) and output.get("view") == "json"
    session, _ = await _last_lines(node, f"{folder}/{SESSION}", bytes_max) if stream else ([], 0)
    return Fetched(
        tuple(lines),
        left_out,
        "" if too_long else junit,
        stream,
        secret_values({str(name): str(value) for name, value in env.items()}) if isinstance(env, dict) else (),
        tuple(session),
    )


def texts_of(fetched: Fetched, secrets: Sequence[str]) -> Texts:
    """Returns the files for people; seconds of work for an output of megabytes.

    Args:
        fetched: What came from the node.
        secrets: Values that must not be seen.
    """
    masker = Masker(secrets)
    entries = _entries(fetched.output)
    streams: dict[str, list[str]] = {}
    for stream, text in entries:
        streams.setdefault(stream, []).append(printable(text).replace("\n", " "))
    # A stream is masked as one text, as a secret may go on in its next line; a masked text has as many lines as before.
    masked = {stream: iter(masker.text("\n".join(lines)).split("\n")) for stream, lines in streams.items()}
    lines = [("" if stream == "out" else f"[{stream}] ") + next(masked[stream]) for stream, _ in entries]
    if fetched.left_out:
        lines.insert(0, f"[orchestra] {fetched.left_out} bytes of output before this are left out; `orchestra task logs` shows them")
    events = fetched.session or ([text for stream, text in entries if stream == "out"] if fetched.stream else ())
    transcript = [_event(text, masker) for text in events]
    return Texts("".join(f"{line}\n" for line in lines), "".join(f"{line}\n" for line in transcript if line), masker.text(fetched.junit))


def _entries(output: Sequence[str]) -> list[tuple[str, str]]:
    """Returns stream and text of each printed line; long ones are put together again."""
    found: list[tuple[str, str]] = []
    open_parts: dict[str, int] = {}
    for text in output:
        try:
            values = _decoder.decode(text)
        except (msgspec.DecodeError, msgspec.ValidationError):
            continue  # the rest of a line whose beginning is left out, or one that a full disk tore
        if values.s in open_parts:
            place = open_parts[values.s]
            found[place] = (values.s, found[place][1] + values.line)
        else:
            place = len(found)
            found.append((values.s, values.line))
        if values.part:
            open_parts[values.s] = place
        else:
            open_parts.pop(values.s, None)
    return found


def _event(text: str, masker: Masker) -> str:
    """Returns a line of a stream of events, masked and still JSON, or nothing if it is none."""
    if not text.startswith("{"):
        return ""
    try:
        values = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return ""
    masked = masker.text(text)
    try:
        msgspec.json.decode(masked)
    except msgspec.DecodeError:
        masked = msgspec.json.encode(masker.plain(values)).decode()
    return masked


async def _order(node: Node, path: str) -> dict[str, Any]:
    text, _ = await _text(node, path, SPEC_BYTES_MAX)
    try:
        values = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError:
        return {}
    return values if isinstance(values, dict) else {}


async def _text(node: Node, path: str, bytes_max: int) -> tuple[str, bool]:
    """Returns a file's text, and whether it is longer than that."""
    lines, skipped = await _last_lines(node, path, bytes_max)
    return "\n".join(lines), bool(skipped)


async def _last_lines(node: Node, path: str, bytes_max: int) -> tuple[list[str], int]:
    """Returns the last lines of a file, and how many bytes are before them. Each reading ends with a line, so that no character is torn."""
    try:
        _, size = await node.read(path, 0, 0)
        start = offset = max(0, size - bytes_max)
        pieces: list[str] = []
        while offset < size:
            text, _ = await node.read(path, offset, min(PIECE_BYTES, size - offset))
            whole, line_end, _ = text.rpartition("\n")
            last = offset + PIECE_BYTES >= size
            if line_end and not last:
                pieces.append(whole + line_end)
                offset += len(pieces[-1].encode())
            else:
                pieces.append(text)
                offset += PIECE_BYTES
    except NotFound:
        return [], 0
    lines = "".join(pieces).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return lines, start
