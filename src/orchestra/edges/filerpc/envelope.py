"""One command file: what it asks, in either of its two forms, and the answer in the same form. Pure.

`{"jsonrpc": "2.0", "id": 1, "method": "orchestra.status", "params": {...}}` is answered `{"jsonrpc": "2.0", "id": 1, "result": {...}}`;
`{"command": "orchestra.status", "parameters": {...}}` is answered with the result itself. Errors carry a stable code, a message, the field and a hint.
"""

from __future__ import annotations

import difflib
import hashlib
from typing import Any, Final

import msgspec

from orchestra.client import error_to_wire
from orchestra.errors import BadInput, OrchestraError

PREFIX: Final = "orchestra."
COMMANDS: Final = ("init", "submit_task", "submit_batch", "status", "scale", "shutdown", "cancel")
DEPTH_MAX: Final = 64


class Asked(msgspec.Struct, frozen=True):
    """A readable command."""

    method: str
    params: bytes
    """JSON."""
    jsonrpc: bool
    id: int | str | float | None
    digest: str


def parse(body: bytes) -> Asked:
    """Returns what a file asks.

    Raises:
        BadInput: It is neither form, or names no command; `field` says where.
    """
    try:
        values = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as exc:
        raise BadInput(
            f"the file is not a JSON object: {exc}", field="(file)", hint="write the whole file, then rename it into place"
        ) from exc
    digest = hashlib.sha256(msgspec.json.encode(values, order="sorted")).hexdigest()
    jsonrpc = "jsonrpc" in values or "method" in values
    known = {"jsonrpc", "id", "method", "params"} if jsonrpc else {"command", "parameters", "command_id"}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise BadInput(
                "there is no such field",
                field=name[:80],
                hint=f"did you mean {near[0]!r}?" if near else f"fields: {', '.join(sorted(known))}",
            )
    if jsonrpc and values.get("jsonrpc") != "2.0":
        raise BadInput('must be "2.0"', field="jsonrpc")
    number = values.get("id")
    if isinstance(number, bool) or not isinstance(number, int | str | float | None):
        raise BadInput("must be a string or a number", field="id")
    method = _method(values.get("method" if jsonrpc else "command"), "method" if jsonrpc else "command")
    params = values.get("params" if jsonrpc else "parameters", {})
    if params is None:
        params = {}
    if not isinstance(params, dict):
        raise BadInput("must be an object", field="params" if jsonrpc else "parameters")
    return Asked(method, msgspec.json.encode(params), jsonrpc, number, digest)


def _method(name: object, field: str) -> str:
    if not isinstance(name, str):
        raise BadInput("must be a command's name", field=field, hint=f"commands: {', '.join(PREFIX + each for each in COMMANDS)}")
    short = name.removeprefix(PREFIX)
    if short not in COMMANDS:
        near = difflib.get_close_matches(short, COMMANDS, 1)
        hint = f"did you mean {PREFIX + near[0]!r}?" if near else f"commands: {', '.join(PREFIX + each for each in COMMANDS)}"
        raise BadInput(f"there is no command {name[:80]!r}", field=field, hint=hint)
    return short


def answer(asked: Asked | None, result: object) -> bytes:
    """Returns a good answer as the content of its file."""
    values = {"jsonrpc": "2.0", "id": asked.id, "result": result} if asked is not None and asked.jsonrpc else result
    return msgspec.json.format(msgspec.json.encode(values), indent=2) + b"\n"


def refusal(asked: Asked | None, error: OrchestraError) -> bytes:
    """Returns an error as the content of its file; without a readable command it has both forms' fields."""
    wire = error_to_wire(error)
    if asked is not None and not asked.jsonrpc:
        values: dict[str, Any] = {"error": {"code": error.code, "message": error.message, "field": error.field, "hint": error.hint}}
    else:
        values = {"jsonrpc": "2.0", "id": None if asked is None else asked.id, "error": wire}
    return msgspec.json.format(msgspec.json.encode(values), indent=2) + b"\n"
