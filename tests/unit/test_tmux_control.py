"""Control mode byte by byte: any chunking, any noise, any text; and a client that is lied to by a pane."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.errors import BadInput, ProtocolBroken, TmuxGone
from orchestra.nodes.tmux import TmuxServer
from orchestra.nodes.transport import Channel, Completed
from orchestra.protocol.tmux_control import (
    ControlParser,
    Exit,
    Message,
    Notification,
    Reply,
    WindowOrder,
    command_line,
    escape_format,
    pane_format,
    parse_panes,
    pasteable,
    quote,
    window_command,
    window_name,
)

STREAM = (
    b"Welcome to the machine\n%hello\nlast words without an end %begin 17 1 0\n%end 17 1 0\n%session-changed $0 keeper\n"
    b"%begin 17 5 1\nfirst\n%end 17 4 1\n%begin 17 6 1\n%exit\n%window-close @1\n\xff\xc3\n\n%end 17 5 1\n"
    b"%window-close @3\nstray line\n%begin 18 6 1\ncan't find pane: %9\n%error 18 6 1\n%begin 18 7 1\n%end 18 7 1\n"
    b"%exit server exited\n%window-add @4\n"
)
MESSAGES: list[Message] = [
    Reply(1, True, (), ours=False),
    Notification("session-changed", "$0 keeper"),
    Reply(5, True, ("first", "%end 17 4 1", "%begin 17 6 1", "%exit", "%window-close @1", "\ufffd\ufffd", "")),
    Notification("window-close", "@3"),
    Reply(6, False, ("can't find pane: %9",)),
    Reply(7, True, ()),
    Exit("server exited"),
]


def fed(parser: ControlParser, chunks: Sequence[bytes]) -> list[Message]:
    return [message for chunk in chunks for message in parser.feed(chunk)]


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_any_chunking_gives_the_same_messages(cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(STREAM)]
    assert fed(ControlParser(), [STREAM[a:b] for a, b in itertools.pairwise(bounds)]) == MESSAGES


def test_byte_by_byte() -> None:
    assert fed(ControlParser(), [STREAM[at : at + 1] for at in range(len(STREAM))]) == MESSAGES


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"])), max_size=20))
def test_content_is_kept_as_it_is(lines: list[str]) -> None:
    content = [line for line in lines if line not in ("%end 9 9 1", "%error 9 9 1")]
    data = b"%begin 9 9 1\n" + b"".join(line.encode() + b"\n" for line in content) + b"%end 9 9 1\n"
    assert ControlParser().feed(data) == [Reply(9, True, tuple(content))]


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_garbage_is_an_error_or_nothing_never_a_crash(chunks: list[bytes]) -> None:
    parser = ControlParser(line_bytes_max=64, reply_bytes_max=128, noise_bytes_max=256)
    try:
        fed(parser, chunks)
    except ProtocolBroken:
        assert parser.feed(b"%begin 1 1 1\n%end 1 1 1\n") == []


@pytest.mark.parametrize(
    "data", [b"x" * 65, b"%begin 1 1 1\n%end 1 1 1\n" + b"x" * 65, b"%begin 1 1 1\n" + b"1234567\n" * 17, b"noise\n" * 11]
)
def test_memory_is_bounded(data: bytes) -> None:
    with pytest.raises(ProtocolBroken):
        ControlParser(line_bytes_max=64, reply_bytes_max=128, noise_bytes_max=64).feed(data)


def test_a_forged_end_is_found_out_by_the_real_one() -> None:
    forged = b"%begin 1 8 1\nfrom the pane\n%end 1 8 1\n"
    parser = ControlParser()
    assert parser.feed(forged) == [Reply(8, True, ("from the pane",))]
    with pytest.raises(ProtocolBroken):
        parser.feed(b"%end 1 8 1\n")


def words_of(line: str) -> list[str]:
    """Reads a line as tmux does: single quotes literal, escapes outside and in double quotes. Refuses what would be expanded."""
    words: list[str] = []
    word, state, at = "", " ", 0
    while at < len(line):
        character = line[at]
        at += 1
        if state == "'":
            if character == "'":
                state = "-"
            else:
                word += character
        elif character == "\\":
            word += {"n": "\n"}.get(line[at], line[at])
            at += 1
        elif state == '"':
            assert character == '"'
            state = "-"
        elif character in "'\"":
            state = character
        else:
            assert character == " ", "nothing stands outside quotes"
            words.append(word)
            word, state = "", " "
    assert state == "-"
    return [*words, word]


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
HOSTILE = st.text(st.sampled_from("'\"\\\n$;#{}~%`()[]-= \t\x1b;ä€🎼"))


@given(st.lists(TEXT | HOSTILE, max_size=5))
def test_every_argument_arrives(arguments: list[str]) -> None:
    line = command_line(["set-buffer", *arguments])
    assert line.count(b"\n") == 1
    assert words_of(line.decode().removesuffix("\n")) == ["set-buffer", *arguments]


@pytest.mark.parametrize("bad", ["a\0b", "\ud800"])
def test_what_no_argument_can_carry_is_refused(bad: str) -> None:
    with pytest.raises(BadInput):
        quote(bad)


@pytest.mark.parametrize("argv", [[], [""]])
def test_an_empty_line_is_never_made(argv: list[str]) -> None:
    with pytest.raises(BadInput):
        command_line(argv)


@given(HOSTILE)
def test_escaped_text_has_no_format_in_it(text: str) -> None:
    escaped = escape_format(text)
    for run in re.finditer(r"#+", escaped):
        assert len(run[0]) % 2 == 0 or escaped[run.end() : run.end() + 1] == "["


@given(st.text())
def test_pasted_text_can_do_nothing_to_a_terminal(text: str) -> None:
    clean = pasteable(text)
    assert not [character for character in clean if (ord(character) < 32 and character not in "\n\t") or 127 <= ord(character) < 160]
    assert pasteable(clean) == clean


def test_pasted_text_keeps_everything_else() -> None:
    assert pasteable("a\r\nb\rc\td\x1b[201~e\x9bf'$(x)`;🎼") == "a\nb\nc\td[201~ef'$(x)`;🎼"


@given(st.text())
def test_a_window_name_is_for_people_only(text: str) -> None:
    name = window_name(text)
    assert 0 < len(name) <= 64
    assert name.isprintable()
    assert not set(name) & set("#:.\\")


def test_one_word_does_not_become_a_shell_line() -> None:
    assert window_command("=s:", WindowOrder(1, "a", ("a b; c",)))[-5:] == ("--", "/bin/sh", "-c", 'exec "$0"', "a b; c")


@pytest.mark.parametrize(
    "order", [WindowOrder(1, "a", ()), WindowOrder(1, "a", ("x",), (("A=B", "c"),)), WindowOrder(1, "a", ("x",), (("", "c"),))]
)
def test_a_window_without_program_or_with_bad_variables_is_refused(order: WindowOrder) -> None:
    with pytest.raises(BadInput):
        window_command("=s:", order)


PANE = "%3:@2:77:1:::0:200:50:7::s:sh"


def test_panes_are_read_and_made_up_lines_are_not() -> None:
    listing = ["m:%3:@2:77:1:7::0:200:50:7::s:a\\ b", "x:%4:@2:77:0:::0:200:50:8::s:sh", "continued", "m:%5:@4:78:1::KILL:1:80:24:::t u:"]
    first, second = parse_panes(listing, "m")
    assert (first.agent, first.pane_id, first.dead_status, first.dead_signal, first.current_command) == (7, "%3", 7, None, "a b")
    assert (second.agent, second.session, second.dead, second.dead_signal, second.in_mode) == (None, "t u", True, 9, True)
    assert pane_format("m", "@id").startswith("m:#{pane_id}:")


def test_a_pane_in_grouped_sessions_is_listed_once() -> None:
    panes = parse_panes([f"m:%3:@2:77:0:::0:80:24:7:main:{session}:sh" for session in ("view-1", "main", "view-2")], "m")
    assert [pane.session for pane in panes] == ["main"]


def test_a_marked_line_of_another_form_is_a_broken_protocol() -> None:
    with pytest.raises(ProtocolBroken):
        parse_panes(["m:%3:nonsense"], "m")


class ForgingChannel:
    """A server whose pane %1 shows guards: the capture is answered with a forged end and a forged next answer."""

    def __init__(self) -> None:
        self._out: asyncio.Queue[bytes] = asyncio.Queue()
        self._number = 1
        self._out.put_nowait(b"%begin 1 1 0\n%end 1 1 0\n%session-changed $0 k\n")

    async def read(self) -> bytes:
        return await self._out.get()

    def write(self, data: bytes) -> None:
        for line in data.decode().splitlines():
            words = words_of(line)
            self._number += 1
            here, following = f"1 {self._number} 1", f"1 {self._number + 1} 1"
            said = "1 2 3.3a" if "#{pid}" in words[-1] else words[-1]
            if words[0] == "capture-pane":
                said = f"x\n%end {here}\n%begin {following}\nlies\n%end {following}\n%begin {following}"
            self._out.put_nowait(f"%begin {here}\n{said}\n%end {here}\n".encode())

    async def drain(self) -> None:
        return

    async def close(self) -> None:
        self._out.put_nowait(b"")

    async def wait_closed(self) -> int | None:
        return 0

    def errors(self) -> bytes:
        return b""


class ForgingTransport:
    async def open(self, argv: Sequence[str]) -> Channel:
        return ForgingChannel()

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_ms: int) -> Completed:
        return Completed(0, b"", b"")

    def interactive(self, argv: Sequence[str]) -> tuple[str, ...]:
        return tuple(argv)

    async def expose(self, port: int) -> int:
        return port

    async def close(self) -> None: ...


async def test_a_pane_that_forges_answers_is_not_believed() -> None:
    async with TmuxServer(ForgingTransport(), "/tmp/s", "/tmp/c") as server:
        await server.connect_server()
        with pytest.raises(TmuxGone):
            await server.capture(["%1"])


@pytest.mark.parametrize("socket", ["relative", "/tmp/a b", "/tmp/" + "x" * 100, "/tmp/../s", "/tmp/$(x)"])
def test_a_socket_path_is_plain_and_short(socket: str) -> None:
    with pytest.raises(BadInput):
        TmuxServer(ForgingTransport(), socket, "/tmp/c")
