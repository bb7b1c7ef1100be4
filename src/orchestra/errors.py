"""Every error the package raises, arranged by whose fault it is.

OrchestraError
├── Refused                  the domain said no: the request is understood and not possible now
│   ├── NotFound             the id names nothing
│   ├── IllegalMove          the state machine has no such step from here
│   └── DuplicateId          the id is taken by something else
├── BadInput                 what was handed in is malformed; `field` says where
│   ├── PlanInvalid          a plan file or submitted plan
│   └── SettingsInvalid      configuration: file, environment or flag
├── PortFailed               something outside did not do what was asked
│   ├── LedgerFailed
│   │   ├── LedgerConflict   somebody else appended, or our fence is stale
│   │   ├── LedgerUnknown    the append may or may not be durable
│   │   ├── LedgerDamaged    stored bytes contradict their checks; `orchestra ledger repair`
│   │   └── LedgerLocked     another coordinator holds this root
│   ├── NodeFailed
│   │   ├── NodeUnreachable
│   │   │   ├── HostKeyRefused  its SSH host key is unknown, or another than the known one
│   │   │   └── LoginRefused    it took none of our SSH keys for this user
│   │   ├── TmuxFailed       tmux refused a command
│   │   │   ├── TmuxTimeout  no answer before the deadline: the server may be wedged
│   │   │   ├── TmuxGone     the server or its control channel is gone
│   │   │   └── PaneUnknown  the pane or window id names nothing
│   │   └── CourierFailed    the node's courier refused or died
│   └── CoordinatorUnreachable
├── ProtocolBroken           a peer (or we) broke a wire format
└── InvariantBroken          a bug of ours: stop, and print how to reproduce

Each class has a stable `code`. An instance says what and where in its message, and in `hint` what to do about it.
`FACES` is the one table that maps a code to the exit code, JSON-RPC code and HTTP status an edge shows.
"""

from __future__ import annotations

from typing import ClassVar, Final, NamedTuple


class OrchestraError(Exception):
    """Base of the tree; never raised itself.

    Args:
        message: What happened and where, one sentence.
        hint: What the reader can do about it, one sentence, or empty.
        field: Path of the offending field (`tasks[3].needs[0]`), or empty.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, hint: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        return f"{where}{self.message}" + (f" ({self.hint})" if self.hint else "")


class Refused(OrchestraError):
    code = "refused"


class NotFound(Refused):
    code = "not_found"


class IllegalMove(Refused):
    code = "illegal_move"


class DuplicateId(Refused):
    code = "duplicate_id"


class BadInput(OrchestraError):
    code = "bad_input"


class PlanInvalid(BadInput):
    """A plan that cannot be run. The message is its first problem; `problems` holds all that were found, one line each."""

    code = "plan_invalid"

    def __init__(self, message: str, *, hint: str = "", field: str = "", problems: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint, field=field)
        self.problems = problems


class SettingsInvalid(BadInput):
    code = "settings_invalid"


class PortFailed(OrchestraError):
    code = "port_failed"


class LedgerFailed(PortFailed):
    code = "ledger_failed"


class LedgerConflict(LedgerFailed):
    code = "ledger_conflict"


class LedgerUnknown(LedgerFailed):
    code = "ledger_unknown"


class LedgerDamaged(LedgerFailed):
    code = "ledger_damaged"


class LedgerLocked(LedgerFailed):
    code = "ledger_locked"


class NodeFailed(PortFailed):
    code = "node_failed"


class NodeUnreachable(NodeFailed):
    code = "node_unreachable"


class HostKeyRefused(NodeUnreachable):
    code = "host_key_refused"


class LoginRefused(NodeUnreachable):
    code = "login_refused"


class TmuxFailed(NodeFailed):
    code = "tmux_failed"


class TmuxTimeout(TmuxFailed):
    code = "tmux_timeout"


class TmuxGone(TmuxFailed):
    code = "tmux_gone"


class PaneUnknown(TmuxFailed):
    code = "pane_unknown"


class CourierFailed(NodeFailed):
    code = "courier_failed"


class CoordinatorUnreachable(PortFailed):
    code = "coordinator_unreachable"


class ProtocolBroken(OrchestraError):
    code = "protocol_broken"


class InvariantBroken(OrchestraError):
    code = "invariant_broken"


class Face(NamedTuple):
    """How one error code looks at the edges: process exit code, JSON-RPC error code, HTTP status."""

    exit_code: int
    jsonrpc: int
    http: int


FACES: Final[dict[str, Face]] = {
    "internal": Face(70, -32603, 500),
    "refused": Face(2, -32001, 409),
    "not_found": Face(2, -32002, 404),
    "illegal_move": Face(2, -32003, 409),
    "duplicate_id": Face(2, -32004, 409),
    "bad_input": Face(2, -32602, 400),
    "plan_invalid": Face(2, -32602, 400),
    "settings_invalid": Face(2, -32602, 400),
    "port_failed": Face(69, -32010, 503),
    "ledger_failed": Face(74, -32011, 503),
    "ledger_conflict": Face(74, -32012, 503),
    "ledger_unknown": Face(74, -32013, 503),
    "ledger_damaged": Face(65, -32014, 503),
    "ledger_locked": Face(75, -32015, 409),
    "node_failed": Face(69, -32020, 503),
    "node_unreachable": Face(69, -32021, 503),
    "tmux_failed": Face(69, -32022, 503),
    "tmux_timeout": Face(69, -32023, 504),
    "tmux_gone": Face(69, -32024, 503),
    "pane_unknown": Face(2, -32025, 404),
    "courier_failed": Face(69, -32026, 503),
    "host_key_refused": Face(69, -32027, 503),
    "login_refused": Face(69, -32028, 503),
    "coordinator_unreachable": Face(69, -32030, 503),
    "protocol_broken": Face(76, -32600, 400),
    "invariant_broken": Face(70, -32603, 500),
}
"""Exit codes follow sysexits.h where one fits: 65 bad data, 69 unavailable, 70 software, 74 I/O, 75 temporary, 76 protocol; 2 is bad input."""
