"""The contract of an agent kind: task -> launch, printed line -> signal, end -> verdict. Nothing here does anything.

A kind is an object of this shape, registered under the entry-point group `orchestra.agents`. It never sees a process or a file: the worker on
the node carries out what `launch` says, and hands back what `docs/node.md` calls `exit`.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import msgspec

from orchestra.agents.access import Access
from orchestra.core.model import OutcomeKind, TaskSpec, Usage

ATTEMPT_DIR: Final = "@attempt/"
"""Prefix of an argument or environment value that names a file in the attempt's folder; the node puts the real path there."""
STAGE_DIR: Final = "@stage/"
"""The same for a file that was pushed to the node with the worker."""
PYTHON: Final = "@python"
"""Stands for the node's interpreter."""
SPACE_DIR: Final = "@space/"
"""Prefix of a working folder that the node makes for tasks with the same workspace."""
AGENT_DIR: Final = "@agent/"
"""The same for a file in a folder of the agent's own that lasts over its attempts: what a CLI keeps, so that agents do not share it."""


class Context(msgspec.Struct, frozen=True):
    """What a kind may know besides the task."""

    attempt: int
    agent: int
    session: str = ""
    """Session of an earlier attempt to go on with, or empty."""
    settings: dict[str, str] = {}
    """The kind's own section of the configuration."""
    cost_so_far_usd_micros: int = 0
    """What earlier attempts of the task cost, all together; its limit is for all of them."""
    access: Access | None = None
    """The way to the model APIs if a gateway stands before them. Its variables are set whatever the kind does; a kind that wants more than variables
    looks here."""


class SuccessRule(msgspec.Struct, frozen=True):
    """When the worker may go on to the checks: the exit code is one of these and, if named, the last line of that type has these fields."""

    codes: tuple[int, ...] = (0,)
    signal_type: str = ""
    signal_fields: dict[str, bool | int | str] = {}


class Launch(msgspec.Struct, frozen=True):
    """One process to run."""

    argv: tuple[str, ...]
    files: dict[str, str] = {}
    """Files to put into the attempt's folder first, by plain name."""
    agent_files: dict[str, str] = {}
    """Files to put below `AGENT_DIR` first, by relative path; those that are there are written over."""
    env: dict[str, str] = {}
    env_pass: tuple[str, ...] = ()
    """Names of variables of the node's own environment that are let through."""
    stdin: str = "null"
    """`null`, `pane` or `prompt` (then `files` holds `prompt.txt`)."""
    view: str = "lines"
    """How the window shows the output: `lines` as they are, or `json` for streams of JSON lines."""
    signals: tuple[str, ...] = ()
    """Values of `type` in printed JSON lines that are reported at once."""
    success: SuccessRule = SuccessRule()
    sandbox: bool = False
    """It does what a model says: it runs in a sandbox wherever there is one to be had, unless the settings say otherwise."""
    sandbox_argv: tuple[str, ...] = ()
    """What runs in the sandbox in the place of `argv`: a program with a sandbox of its own may not work in another one."""


class Signal(msgspec.Struct, frozen=True):
    """What a printed line tells about a running attempt."""

    activity: str = ""
    """A few words about what it does now."""
    progress: float | None = None
    """From 0.0 to 1.0."""
    usage: Usage | None = None
    """Consumption so far, in all."""
    session: str = ""
    waiting_for: str = ""
    """A question it waits to be answered, or empty; any later signal says that it goes on."""
    number: int = 0
    """Which question of the attempt that is; 0 where they are not counted."""


class Exit(msgspec.Struct, frozen=True):
    """How the process ended, as the worker saw it (the `exit` object of `docs/node.md`)."""

    reason: str
    code: int | None = None
    signal: int | None = None
    duration_ms: int = 0
    lines: int = 0
    bytes: int = 0
    dropped_bytes: int = 0
    last: dict[str, dict[str, Any]] = {}
    tail: tuple[str, ...] = ()
    rss_bytes_max: int = 0
    cpu_ms: int = 0


class Verdict(msgspec.Struct, frozen=True):
    """What a kind makes of an end, before the checks are looked at."""

    kind: OutcomeKind
    reason: str = ""
    usage: Usage = Usage()
    session: str = ""
    summary: str = ""
    output_files: tuple[str, ...] = ()
    usage_of_session: bool = False
    """The usage counts from the beginning of the session; whoever knows the earlier attempts in it takes off what they used."""


def sessions_move(adapter: Adapter) -> bool:
    """Tells whether the kind goes on with a session in another folder than it began in: where its adapter has `sessions_move = True`."""
    return getattr(adapter, "sessions_move", False) is True


class Adapter(Protocol):
    """One agent kind."""

    kind: str
    programs: tuple[str, ...]
    """Programs that have to be on the node's PATH."""
    variables: tuple[str, ...]
    """Variables of the node's login that `Launch.env_pass` may name: keys and proxies. No others reach the windows."""
    memory_bytes: int
    """Memory an attempt is expected to need before any was measured."""

    def launch(self, spec: TaskSpec, context: Context) -> Launch:
        """Returns the process for one attempt.

        Raises:
            BadInput: The kind cannot run such a payload.
        """
        ...

    def signal(self, line: dict[str, Any]) -> Signal | None:
        """Returns what a reported line tells, or None."""
        ...

    def verdict(self, spec: TaskSpec, end: Exit) -> Verdict:
        """Returns how the attempt ended by the kind's own rules. Total: every end has a verdict."""
        ...
