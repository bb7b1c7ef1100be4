"""tmux control mode as pure code: server bytes to messages, arguments to command lines.

The server answers every command line with one block, in the order the lines were sent:

    %begin <time> <number> <flags>
    any lines
    %end <time> <number> <flags>          or %error, with the very same three numbers

Rules of this file:
1. A block is closed only by the three numbers that opened it; anything else inside it is content.
2. Flag 1 marks the answer to a line of ours. Blocks without it (the attach itself, a hook) answer nobody.
3. Content is not escaped by tmux, so a pane may print a line that equals the guard to come. Such a forgery shortens one answer;
   whoever asks for text from a pane sends a command with an unguessable answer right behind it, and distrusts the stream if that
   answer is not exact. The real guard then stands outside any block, which the server never does: `ProtocolBroken`.
4. One line gets one answer, unless its command runs others (`source-file`, `if-shell`, `run-shell -C`): those are not for this channel.
5. An empty line makes tmux detach, so none is ever produced.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from orchestra.errors import BadInput, PaneUnknown, ProtocolBroken

LINE_BYTES_MAX: Final = 4 << 20
"""One line from the server. The longest legal one is a screen line with colours, some 100 KB at 10,000 columns."""
REPLY_BYTES_MAX: Final = 64 << 20
"""One answer. 50,000 lines of history at 200 columns with colours are about 40 MB."""
NOISE_BYTES_MAX: Final = 1 << 20
"""What a login shell may print before the first answer."""
WINDOW_NAME_MAX: Final = 64

_FIRST_BEGIN: Final = re.compile(rb"%begin (\d+ \d+ \d+)\Z")
_GUARD: Final = re.compile(rb"%(begin|end|error) (\d+ \d+ \d+)")
SOCKET_BYTES_MAX: Final = 100
"""The kernel allows 107 and tmux appends nothing; macOS allows 103."""

_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_.-]+)+")
_PANE_ID: Final = re.compile(r"%[0-9]{1,9}")
_WINDOW_ID: Final = re.compile(r"@[0-9]{1,9}")
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STRAY_RUN: Final = re.compile(r"#+(\[?)")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Reply(msgspec.Struct, frozen=True):
    """One answer. `ours` tells the answer to a line of this client from a block the server opened for itself."""

    number: int
    ok: bool
    lines: tuple[str, ...]
    ours: bool = True


class Notification(msgspec.Struct, frozen=True):
    """Something that happened: `%window-close @3` has the name `window-close` and the args `@3`."""

    name: str
    args: str


class Exit(msgspec.Struct, frozen=True):
    """The server let this client go; nothing follows."""

    reason: str


Message = Reply | Notification | Exit


class ControlParser:
    """Turns what a control-mode client prints into messages, whatever the chunks.

    Everything before the first `%begin` is skipped, even on the same line: shells print banners. Lines outside a block
    that do not start with `%` are skipped too. Memory is bounded by the three limits, in bytes.
    """

    def __init__(
        self,
        *,
        line_bytes_max: int = LINE_BYTES_MAX,
        reply_bytes_max: int = REPLY_BYTES_MAX,
        noise_bytes_max: int = NOISE_BYTES_MAX,
    ) -> None:
        self._line_bytes_max = line_bytes_max
        self._reply_bytes_max = reply_bytes_max
        self._noise_bytes_left = noise_bytes_max
        self._rest = bytearray()
        self._started = False
        self._ended = False
        self._guard: bytes | None = None
        self._lines: list[bytes] = []
        self._reply_bytes = 0

    def feed(self, data: bytes) -> list[Message]:
        """Returns the messages that `data` completes. After `Exit`, nothing more comes.

        Raises:
            ProtocolBroken: A limit was passed or a guard stands where none can. The stream cannot be trusted any more.
        """
        if self._ended:
            return []
        self._rest += data
        if b"\n" not in data:
            self._check_rest()
            return []
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        messages: list[Message] = []
        for line in lines:
            message = self._take(line)
            if message is not None:
                messages.append(message)
            if isinstance(message, Exit):
                return messages
        self._check_rest()
        return messages

    def _check_rest(self) -> None:
        limit = self._line_bytes_max if self._started else self._noise_bytes_left
        if len(self._rest) > limit:
            raise self._broken(f"a line of tmux is longer than {limit} bytes")

    def _broken(self, message: str) -> ProtocolBroken:
        self._ended = True
        self._rest.clear()
        self._lines.clear()
        return ProtocolBroken(message, hint="the control channel has to be opened anew")

    def _take(self, line: bytes) -> Message | None:
        if not self._started:
            return self._take_noise(line)
        if self._guard is not None:
            return self._take_content(line, self._guard)
        return self._take_event(line)

    def _take_noise(self, line: bytes) -> Message | None:
        begin = _FIRST_BEGIN.search(line)
        if begin is not None:
            self._started = True
            self._guard = begin[1]
            return None
        if line == b"%exit" or line.startswith(b"%exit "):
            return self._exit(line)
        self._noise_bytes_left -= len(line) + 1
        if self._noise_bytes_left < 0:
            raise self._broken("too much was printed before tmux answered")
        return None

    def _take_content(self, line: bytes, guard: bytes) -> Message | None:
        found = _GUARD.fullmatch(line)
        if found is not None and found[2] == guard and found[1] != b"begin":
            return self._close(ok=found[1] == b"end", guard=guard)
        self._reply_bytes += len(line) + 1
        if self._reply_bytes > self._reply_bytes_max:
            raise self._broken(f"an answer of tmux is longer than {self._reply_bytes_max} bytes")
        self._lines.append(line)
        return None

    def _close(self, *, ok: bool, guard: bytes) -> Reply:
        _, number, flags = guard.split(b" ")
        lines = tuple(line.decode("utf-8", "replace") for line in self._lines)
        self._guard = None
        self._lines = []
        self._reply_bytes = 0
        return Reply(number=int(number), ok=ok, lines=lines, ours=bool(int(flags) & 1))

    def _take_event(self, line: bytes) -> Message | None:
        found = _GUARD.fullmatch(line)
        if found is not None:
            if found[1] != b"begin":
                raise self._broken("tmux closed an answer that was not open")
            self._guard = found[2]
            return None
        if line == b"%exit" or line.startswith(b"%exit "):
            return self._exit(line)
        if not line.startswith(b"%"):
            return None
        name, _, args = line[1:].decode("utf-8", "replace").partition(" ")
        return Notification(name=name, args=args)

    def _exit(self, line: bytes) -> Exit:
        self._ended = True
        return Exit(reason=line[len(b"%exit ") :].decode("utf-8", "replace"))


def quote(argument: str) -> str:
    """Returns `argument` as one word of a command line: it arrives unexpanded and whole, whatever it holds.

    In single quotes tmux expands nothing. Only two characters cannot stand there: the quote itself and a newline, which
    would end the line.

    Raises:
        BadInput: It holds NUL, which no argument can carry, or half a surrogate pair, which is not text.
    """
    if "\0" in argument:
        raise BadInput("a tmux argument cannot hold NUL")
    if any("\ud800" <= character <= "\udfff" for character in argument):
        raise BadInput("a tmux argument holds half a surrogate pair", hint="decode it as UTF-8 first")
    return "'" + argument.replace("'", "'\\''").replace("\n", "'\"\\n\"'") + "'"


def command_line(argv: Sequence[str]) -> bytes:
    """Returns the line that makes a control-mode client run one command, newline included.

    An argument that may start with `-` needs a `--` before it: that is the command's own parsing.

    Raises:
        BadInput: There is no command, or an argument that `quote` refuses.
    """
    if not argv or not argv[0]:
        raise BadInput("an empty line would detach the client")
    return (" ".join(quote(argument) for argument in argv) + "\n").encode()


def escape_format(text: str) -> str:
    """Returns `text` so that an argument which tmux expands as a format shows exactly `text`.

    `#` is doubled. A run of `#` before `[` is a style, which expansion leaves as it stands, so it is left too.
    """
    return _STRAY_RUN.sub(lambda run: run[0] if run[1] else run[0] * 2, text)


def pasteable(text: str) -> str:
    """Returns `text` without anything a terminal would act on: C0, DEL and C1 are dropped, except newline and tab.

    Line ends become `\\n`. Without ESC nothing in it can end a bracketed paste.
    """
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def check_pane_id(text: str) -> str:
    """Returns `text` if it is an id; anything else tmux would take for a name or a beginning of one, or for more commands.

    Raises:
        PaneUnknown: It is not.
    """
    if _PANE_ID.fullmatch(text) is None:
        raise PaneUnknown(f"{text[:40]!r} is not a pane id")
    return text


def check_window_id(text: str) -> str:
    """Returns `text` if it is an id, as `check_pane_id`.

    Raises:
        PaneUnknown: It is not.
    """
    if _WINDOW_ID.fullmatch(text) is None:
        raise PaneUnknown(f"{text[:40]!r} is not a window id")
    return text


def check_path(text: str, *, field: str) -> str:
    """Returns `text` if it is an absolute path without anything a shell, tmux or the kernel's socket table would read differently.

    Raises:
        BadInput: It is not, or it is a socket's and too long for the kernel.
    """
    if _PATH.fullmatch(text) is None or ".." in text.split("/"):
        raise BadInput(f"{text[:120]!r} is not a plain absolute path", field=field, hint="letters, digits, '.', '_' and '-' only")
    if field == "socket" and len(text) >= SOCKET_BYTES_MAX:
        raise BadInput(f"{text} is not shorter than {SOCKET_BYTES_MAX} bytes", field=field, hint="use a shorter folder")
    return text


def window_name(text: str) -> str:
    """Returns a name for people from any text: printable, at most 64 characters, nothing a format, style or target would read."""
    kept = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(re.sub(r"[#:.\\]", "_", kept).split())[:WINDOW_NAME_MAX] or "_"


class WindowOrder(msgspec.Struct, frozen=True):
    """A window to be made: `argv` runs directly, never through a shell."""

    agent: int
    name: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    cwd: str = "/"


class PaneFacts(msgspec.Struct, frozen=True):
    """One pane. `agent` is None for a pane that is nobody's; `pid` is that of the program tmux started in it.

    A dead pane has a status or a signal, or neither as long as tmux has not learned how it ended: look again.
    `dead_signal` is a number. `width` and `height` are in characters. `current_command` is what the pane's program calls itself.
    """

    agent: int | None
    session: str
    window_id: str
    pane_id: str
    pid: int
    dead: bool
    dead_status: int | None
    dead_signal: int | None
    current_command: str
    in_mode: bool
    width: int
    height: int


_PANE_FIELDS: Final = (
    "#{pane_id}:#{window_id}:#{pane_pid}:#{pane_dead}:#{pane_dead_status}:#{pane_dead_signal}"
    ":#{pane_in_mode}:#{pane_width}:#{pane_height}:#{?#{m/r:^[0-9]+$,#{@IDENTITY}},#{@IDENTITY},}"
    ":#{session_group}:#{session_name}:#{q:pane_current_command}"
)
_PANE: Final = re.compile(
    r"(?P<pane>%\d+):(?P<window>@\d+):(?P<pid>-?\d*):(?P<dead>[01]?):(?P<status>\d*):(?P<signal>\w*):(?P<mode>\d*)"
    r":(?P<width>\d+):(?P<height>\d+):(?P<agent>\d*):(?P<group>[^:]*):(?P<session>[^:]*):(?P<command>.*)"
)


_BSD_SIGNALS: Final = {
    "HUP": 1,
    "INT": 2,
    "QUIT": 3,
    "ILL": 4,
    "TRAP": 5,
    "ABRT": 6,
    "EMT": 7,
    "FPE": 8,
    "KILL": 9,
    "BUS": 10,
    "SEGV": 11,
    "SYS": 12,
    "PIPE": 13,
    "ALRM": 14,
    "TERM": 15,
    "XCPU": 24,
    "XFSZ": 25,
    "VTALRM": 26,
    "PROF": 27,
    "USR1": 30,
    "USR2": 31,
}
"""Where the C library can name signals (macOS, the BSDs) tmux gives the name; elsewhere the number."""


def pane_format(mark: str, identity: str) -> str:
    """Returns the format whose lines `parse_panes` reads.

    Args:
        mark: Fresh and unguessable. Of all fields only the last, the name a program gives itself, can hold anything, even newlines;
            a line it makes up lacks the mark, and `q:` puts a backslash before any `%` so that it is no guard either.
        identity: The user option that holds the agent's number.
    """
    return f"{mark}:{_PANE_FIELDS.replace('@IDENTITY', identity)}"


def parse_panes(lines: Sequence[str], mark: str) -> tuple[PaneFacts, ...]:
    """Returns the panes of a listing, each once: a pane in grouped sessions is reported in the session the group is named after.

    Raises:
        ProtocolBroken: A marked line has another form.
    """
    panes: dict[str, PaneFacts] = {}
    for line in lines:
        start, _, rest = line.partition(":")
        if start != mark:
            continue
        found = _PANE.fullmatch(rest)
        if found is None:
            raise ProtocolBroken(f"tmux listed a pane in an unknown form: {rest[:100]!r}")
        if found["pane"] not in panes or found["group"] == found["session"]:
            panes[found["pane"]] = _pane_facts(found)
    return tuple(panes.values())


def _pane_facts(found: re.Match[str]) -> PaneFacts:
    return PaneFacts(
        agent=_number(found["agent"]),
        session=found["session"],
        window_id=found["window"],
        pane_id=found["pane"],
        pid=_number(found["pid"]) or 0,
        dead=found["dead"] == "1",
        dead_status=_number(found["status"]),
        dead_signal=_signal_number(found["signal"]),
        current_command=re.sub(r"\\(.)", r"\1", found["command"]),
        in_mode=found["mode"] not in ("", "0"),
        width=int(found["width"]),
        height=int(found["height"]),
    )


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _signal_number(text: str) -> int | None:
    return _BSD_SIGNALS.get(text.upper().removeprefix("SIG")) or _number(text)


def window_command(target: str, order: WindowOrder) -> tuple[str, ...]:
    """Returns the command that makes a window and answers its window id, pane id and pid.

    Raises:
        BadInput: There is no program, or a variable's name is none.
    """
    if not order.argv:
        raise BadInput("a window needs a command", field="argv")
    words: list[str] = []
    for name, value in order.env:
        if _ENV_NAME.fullmatch(name) is None:
            raise BadInput(f"{name[:40]!r} is not the name of a variable", field="env")
        words += ["-e", f"{name}={value}"]
    # tmux hands a single word to a shell; two or more are run as they are.
    argv = order.argv if len(order.argv) > 1 else ("/bin/sh", "-c", 'exec "$0"', *order.argv)
    where = ("-t", target, "-n", escape_format(window_name(order.name)), "-c", escape_format(order.cwd))
    return ("new-window", "-d", "-P", "-F", "#{window_id} #{pane_id} #{pane_pid}", *where, *words, "--", *argv)


def configuration(*, history_lines: int, columns: int, rows: int) -> str:
    """Returns the server's whole configuration; nobody's own `tmux.conf` is read.

    Unknown options of other versions are passed over (`-q`). `window-size manual` as a global option kills a 3.3a server.
    """
    return f"""\
set -sq exit-empty off
set -sq escape-time 10
set -sq set-clipboard off
set -sq message-limit 0
set -sq buffer-limit 500
set -gq default-shell /bin/sh
set -gq default-command ""
set -gq default-terminal screen-256color
set -gq default-size {columns}x{rows}
set -gq history-limit {history_lines}
set -gq update-environment ""
set -gq destroy-unattached off
set -gq detach-on-destroy off
set -gq renumber-windows off
set -gq mouse on
set -gq set-titles off
set -gq bell-action none
set -gq visual-activity off
set -gq lock-after-time 0
set -gq status on
set -gq status-interval 15
set -gq status-left-length 60
set -gq status-left "[#{{session_name}}] "
set -gq status-right "#{{?#{{@orchestra_agent}},agent #{{@orchestra_agent}} ,}}#{{window_name}}#{{?pane_dead, (ended),}} %H:%M"
set -wgq remain-on-exit on
set -wgq automatic-rename off
set -wgq allow-rename off
set -wgq allow-passthrough off
set -wgq monitor-activity off
set -wgq window-status-format "#{{window_index}}:#{{window_name}}#{{?pane_dead,!,}}"
set -wgq window-status-current-format "#{{window_index}}:#{{window_name}}#{{?pane_dead,!,}}"
"""


START_SCRIPT: Final = """
set -eu
umask 077
socket=$1 config=$2 keeper=$3 columns=$4 rows=$5 tmux=$6
mkdir -p -- "$(dirname -- "$socket")" "$(dirname -- "$config")"
cat >"$config.$$"
mv -f -- "$config.$$" "$config"
command -v "$tmux" >/dev/null || { echo "there is no $tmux" >&2; exit 127; }
our_tmux() { "$tmux" -u -S "$socket" -f "$config" "$@"; }
if our_tmux show-options -s exit-empty >/dev/null 2>&1; then our_tmux source-file "$config"; else echo started; fi
our_tmux new-session -d -s "$keeper" -n keeper -x "$columns" -y "$rows" -c / -- /bin/sh -c 'exec cat' 2>/dev/null ||
  our_tmux has-session -t "=$keeper"
"""
"""Runs in a clean environment, with the configuration on its input. Two at once are fine: one finds the other's server.

A server that is there takes the configuration by a client of its own: on a control channel each line of the file would be answered.
"""

_LISTENERS: Final = """
set -eu
listeners() {
  for inode in $(awk -v path="$1" '$4 == "00010000" && $8 == path { print $7 }' /proc/net/unix); do
    { find /proc/[0-9]*/fd -lname "socket:\\[$inode\\]" 2>/dev/null || true; } | while IFS=/ read -r _ _ pid _; do
      echo "$pid $(sed 's/.*) //' "/proc/$pid/stat" | cut -d' ' -f20) $(cat "/proc/$pid/comm")"
    done
  done
}
"""
HOLDER_SCRIPT: Final = _LISTENERS + 'listeners "$1"\n'
"""Prints `pid start command` of whoever listens on a socket path. Field 22 of stat is the start, in ticks since boot."""

KILL_SCRIPT: Final = (
    _LISTENERS
    + """
start_of() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" { print $20 }'; }
listeners "$1" | grep -q "^$2 $3 tmux" || { echo "process $2 is not what listened on $1" >&2; exit 1; }
kill -KILL "$2"
turns=100
while [ "$(start_of "$2")" = "$3" ]; do
  turns=$((turns - 1))
  [ "$turns" -gt 0 ]
  sleep 0.05
done
"""
)
"""Kills the tmux that listens on a socket if it still is the one that was found, and waits until it is gone, at most five seconds."""
