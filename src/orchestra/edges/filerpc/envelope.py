"""One command file: what it asks, in either of its two forms, and the answer in the same form. Pure.

`{"jsonrpc": "2.0", "id": 1, "method": "orchestra.status", "params": {...}}` is answered `{"jsonrpc": "2.0", "id": 1, "result": {...}}`;
`{"command": "orchestra.status", "parameters": {...}}` is answered with the result itself. Errors carry a stable code, a message, the field and a hint.

The text is read once, by the reader that also refuses a key given twice, and the values it returns are what is checked and carried out.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from orchestra.client import error_to_wire
from orchestra.errors import BadInput, OrchestraError
from orchestra.intake.document import parse as parse_document

PREFIX: Final = "orchestra."
COMMANDS: Final = ("init", "submit_task", "submit_batch", "status", "scale", "shutdown", "cancel", "answer", "estimate_cost")
JSONRPC_FIELDS: Final = ("jsonrpc", "id", "method", "params")
PLAIN_FIELDS: Final = ("command", "parameters", "command_id")
NOT_JSON: Final = -32700
NOT_A_REQUEST: Final = -32600
NO_SUCH_METHOD: Final = -32601


class Form(msgspec.Struct, frozen=True):
    """How a file wants to be answered."""

    jsonrpc: bool = True
    id: int | str | float | None = None


class Asked(msgspec.Struct, frozen=True):
    """A readable command."""

    method: str
    params: Mapping[str, Any]
    form: Form
    digest: str
    """Of everything the file says, whatever the order of its keys."""


class NotACommand(BadInput):
    """The file asks nothing that can be understood. `number` is JSON-RPC's code for it, `form` how to answer."""

    def __init__(self, message: str, *, field: str, hint: str = "", number: int = NOT_A_REQUEST, form: Form | None = None) -> None:
        super().__init__(message, hint=hint, field=field)
        self.number = number
        self.form = form or Form()

    @property
    def perhaps_unfinished(self) -> bool:
        """It may be a file that is still being written."""
        return self.number == NOT_JSON


def parse(body: bytes, command_id: str = "") -> Asked:
    """Returns what a file asks.

    Args:
        body: The content.
        command_id: What the file's name stands for; a `command_id` inside has to be the same.

    Raises:
        NotACommand: It is neither form, or names no command; `field` says where.
    """
    values = _read(body, command_id)
    jsonrpc = "jsonrpc" in values or "method" in values or "command" not in values
    number = values.get("id") if jsonrpc else None
    if isinstance(number, bool) or not isinstance(number, int | str | float | None):
        raise NotACommand("must be text or a number", field="id")
    form = Form(jsonrpc, number)
    _check_fields(values, form)
    if jsonrpc and values.get("jsonrpc") != "2.0":
        raise NotACommand(
            'must be "2.0"', field="jsonrpc", hint='write "jsonrpc": "2.0", or use {"command": ..., "parameters": ...}', form=form
        )
    if values.get("command_id", command_id) != command_id:
        raise NotACommand("is not what the file is called", field="command_id", hint=f"write {command_id!r} or leave it out", form=form)
    method = _method(values, form)
    name = "params" if jsonrpc else "parameters"
    params = values.get(name)
    if params is not None and not isinstance(params, dict):
        raise NotACommand("must be an object", field=name, hint="give every parameter its name", form=form)
    digest = hashlib.sha256(msgspec.json.encode(values, order="sorted")).hexdigest()
    return Asked(method, params or {}, form, digest)


def _read(body: bytes, command_id: str) -> dict[str, Any]:
    hint = "write the whole file elsewhere, then rename it into place"
    try:
        text = body.decode()
    except UnicodeDecodeError as exc:
        raise NotACommand(f"the file is not UTF-8: byte {exc.start} cannot be read", field="(file)", hint=hint, number=NOT_JSON) from exc
    start = text.lstrip(" \t\r\n")[:1]
    if start == "[":
        raise NotACommand("the file holds a list", field="(file)", hint="one command a file; submit_batch takes many tasks at once")
    if start != "{":
        what = "is empty" if not start else "is not a JSON object"
        raise NotACommand(f"the file {what}", field="(file)", hint=hint, number=NOT_JSON)
    try:
        found = parse_document(text, source=f"{command_id or 'command'}.json", error=BadInput).value
    except BadInput as exc:
        raise NotACommand(exc.message, field="(file)", hint=exc.hint or hint, number=NOT_JSON) from exc
    values: dict[str, Any] = found
    return values


def _check_fields(values: Mapping[str, Any], form: Form) -> None:
    known = JSONRPC_FIELDS if form.jsonrpc else PLAIN_FIELDS
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"fields: {', '.join(known)}"
            raise NotACommand("there is no such field", field=name[:80], hint=hint, form=form)


def _method(values: Mapping[str, Any], form: Form) -> str:
    field = "method" if form.jsonrpc else "command"
    name = values.get(field)
    commands = f"commands: {', '.join(PREFIX + each for each in COMMANDS)}"
    if not isinstance(name, str):
        raise NotACommand("must be a command's name", field=field, hint=commands, form=form)
    short = name.removeprefix(PREFIX)
    if short not in COMMANDS:
        near = difflib.get_close_matches(short[:80], COMMANDS, 1)
        hint = f"did you mean {PREFIX + near[0]!r}?" if near else commands
        raise NotACommand(f"there is no command {name[:80]!r}", field=field, hint=hint, number=NO_SUCH_METHOD, form=form)
    return short


def answer(form: Form, result: object) -> bytes:
    """Returns a good answer as the content of its file."""
    return _laid_out({"jsonrpc": "2.0", "id": form.id, "result": result} if form.jsonrpc else result)


def refusal(form: Form, error: OrchestraError) -> bytes:
    """Returns an error as the content of its file."""
    if not form.jsonrpc:
        return _laid_out({"error": {"code": error.code, "message": error.message, "field": error.field, "hint": error.hint}})
    wire = error_to_wire(error)
    if isinstance(error, NotACommand):
        wire = msgspec.structs.replace(wire, code=error.number)
    return _laid_out({"jsonrpc": "2.0", "id": form.id, "error": wire})


def _laid_out(values: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(values), indent=2) + b"\n"
