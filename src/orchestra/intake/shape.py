"""What is wrong with a value, in plain words: every place where it does not fit a record, not only the first.

`msgspec` decides whether a value fits and builds the record; this is only asked when it does not. It follows the same type
descriptions, so the two cannot disagree on the rules, and falls back to msgspec's own words where they know more.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import inspect

from orchestra.intake.document import Path

T = TypeVar("T")

PROBLEMS_MAX: Final = 20
"""More than a screen of them is read by nobody."""
NEAREST_AMONG: Final = 5000
"""Names compared when the nearest one is sought; comparing a hundred thousand takes seconds."""
SHOWN_MAX: Final = 60

SYNONYMS: Final[Mapping[str, str]] = {
    "cmd": "run",
    "command": "run",
    "dependencies": "needs",
    "depends_on": "needs",
    "depends": "needs",
    "estimated_time": "estimated_seconds",
    "estimated_seconds": "estimated_time",
    "kind": "agent",
    "max_cost": "max_cost_dollars",
    "max_execution_time": "max_execution_time_seconds",
    "needs": "dependencies",
    "script": "run",
    "task_id": "id",
    "id": "task_id",
    "timeout": "constraints.max_execution_time_seconds",
    "timeout_seconds": "constraints.max_execution_time_seconds",
}
"""What people coming from other tools write, and what it is called here; used where the record has the latter."""


class Problem(NamedTuple):
    """One thing that does not fit, with what to do about it."""

    path: Path
    message: str
    hint: str = ""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the known name most like `name`, or nothing."""
    names = sorted((one for one in known if abs(len(one) - len(name)) <= 4), key=lambda one: abs(len(one) - len(name)))[:NEAREST_AMONG]
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.6)), "")


def convert(value: object, record: type[T]) -> T | list[Problem]:
    """Returns the record the value describes, or up to `PROBLEMS_MAX` reasons why it describes none."""
    try:
        return msgspec.convert(value, record)
    except (msgspec.ValidationError, OverflowError, RecursionError) as refusal:
        found: list[Problem] = []
        for problem in _problems(value, inspect.type_info(record), ()):
            found.append(problem)
            if len(found) == PROBLEMS_MAX:
                break
        return found or [_as_said(str(refusal))]


def describe(value: object) -> str:
    """Returns a value in plain words: `the text 'abc'`, `a list`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"{value}".lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value if len(value) <= SHOWN_MAX else value[:SHOWN_MAX] + '...'!r}"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def _as_said(words: str) -> Problem:
    """Returns msgspec's own message as a problem; its path is kept as far as it is a plain one."""
    message, _, trail = words.partition(" - at `$")
    steps = re.findall(r"\.([^.\[\]`]+)|\[(\d+)\]", trail)
    return Problem(tuple(int(index) if index else name for name, index in steps), message.replace("`", ""))


def _problems(value: object, kind: inspect.Type, path: Path, extra: Mapping[str, Any] | None = None) -> Iterator[Problem]:
    match kind:
        case inspect.Metadata():
            yield from _problems(value, kind.type, path, {**(extra or {}), **(kind.extra or {})})
        case inspect.StructType():
            yield from _struct_problems(value, kind, path)
        case inspect.ListType() | inspect.VarTupleType():
            yield from _list_problems(value, kind, path)
        case inspect.DictType():
            yield from _dict_problems(value, kind, path)
        case inspect.UnionType():
            yield from _union_problems(value, kind, path)
        case inspect.AnyType():
            return
        case _:
            if not _fits(value, kind):
                says = str((extra or {}).get("says", "")) or expectation(kind)
                words = "text" if isinstance(kind, inspect.StrType) and not isinstance(value, str) else says
                yield Problem(path, f"expected {words}, found {describe(value)}", _advice(value, kind))


def _struct_problems(value: object, kind: inspect.StructType, path: Path) -> Iterator[Problem]:
    if not isinstance(value, Mapping):
        yield Problem(
            path, f"expected a mapping, found {describe(value)}", "its fields are " + ", ".join(f.encode_name for f in kind.fields[:8])
        )
        return
    fields = {field.encode_name: field for field in kind.fields}
    for name, child in value.items():
        if name in fields:
            yield from _problems(child, fields[name].type, (*path, name))
        else:
            yield unknown(name, fields, (*path, name))
    for name, field in fields.items():
        if field.required and name not in value:
            yield Problem((*path, name), f"the field {name!r} is missing")


def unknown(name: str, known: Iterable[str], path: Path) -> Problem:
    """Returns the complaint about a field that does not exist, with the nearest one that does."""
    names = list(known)
    synonym = SYNONYMS.get(name, "")
    close = synonym if synonym.partition(".")[0] in names else nearest(name, names)
    return Problem(
        path, f"there is no field {name[:SHOWN_MAX]!r}", f"did you mean {close!r}?" if close else f"known are {', '.join(names[:12])}"
    )


def _list_problems(value: object, kind: inspect.ListType | inspect.VarTupleType, path: Path) -> Iterator[Problem]:
    if not isinstance(value, list | tuple):
        yield Problem(path, f"expected a list, found {describe(value)}", "write it as [a, b]" if isinstance(value, str) else "")
        return
    if len(value) < (kind.min_length or 0) or (kind.max_length is not None and len(value) > kind.max_length):
        yield Problem(path, f"expected {_range(kind.min_length, kind.max_length)} entries, found {len(value)}")
    for index, child in enumerate(value):
        yield from _problems(child, kind.item_type, (*path, index))


def _dict_problems(value: object, kind: inspect.DictType, path: Path) -> Iterator[Problem]:
    if not isinstance(value, Mapping):
        yield Problem(path, f"expected a mapping, found {describe(value)}")
        return
    if kind.max_length is not None and len(value) > kind.max_length:
        yield Problem(path, f"expected at most {kind.max_length} entries, found {len(value)}")
    for key, child in value.items():
        yield from (
            Problem((*path, key), f"the name is not usable: {one.message}", one.hint) for one in _problems(key, kind.key_type, path)
        )
        yield from _problems(child, kind.value_type, (*path, key))


def _union_problems(value: object, kind: inspect.UnionType, path: Path) -> Iterator[Problem]:
    options = [option for option in kind.types if not isinstance(option, inspect.NoneType)]
    if value is None and any(isinstance(option, inspect.NoneType) for option in kind.types):
        return
    shape: type[inspect.Type] | tuple[type[inspect.Type], ...]
    if isinstance(value, Mapping):
        shape = (inspect.StructType, inspect.DictType)
    elif isinstance(value, list | tuple):
        shape = (inspect.ListType, inspect.VarTupleType)
    elif isinstance(value, str):
        shape = (inspect.StrType, inspect.LiteralType)
    else:
        shape = (inspect.IntType, inspect.FloatType, inspect.BoolType)
    fitting = [one for one in options if isinstance(_inner(one), shape)]
    if len(options) == 1 or fitting:
        yield from _problems(value, (fitting or options)[0], path)
    elif not any(_fits(value, _inner(one)) for one in options):
        yield Problem(path, f"expected {' or '.join(expectation(_inner(one)) for one in options)}, found {describe(value)}", "")


def _inner(kind: inspect.Type) -> inspect.Type:
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    return kind


def _fits(value: object, kind: inspect.Type) -> bool:
    match kind:
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool) and _in_bounds(value, kind)
        case inspect.FloatType():
            return isinstance(value, int | float) and not isinstance(value, bool) and _in_bounds(value, kind)
        case inspect.StrType():
            long_enough = isinstance(value, str) and (kind.min_length or 0) <= len(value) <= (kind.max_length or len(value))
            return long_enough and isinstance(value, str) and (kind.pattern is None or re.search(kind.pattern, value) is not None)
        case inspect.LiteralType():
            return isinstance(value, str | int) and not isinstance(value, bool) and value in kind.values
        case inspect.NoneType():
            return value is None
        case _:
            return True


def _in_bounds(value: float, kind: inspect.IntType | inspect.FloatType) -> bool:
    above = (kind.ge is None or value >= kind.ge) and (kind.gt is None or value > kind.gt)
    return above and (kind.le is None or value <= kind.le) and (kind.lt is None or value < kind.lt)


def expectation(kind: inspect.Type) -> str:
    """Returns what a type takes, in plain words."""
    kind = _inner(kind)
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return f"a whole number {_range(kind.ge, kind.le, 'from ')}".strip()
        case inspect.FloatType():
            return f"a number {_range(kind.ge, kind.le, 'from ')}".strip()
        case inspect.StrType():
            limits = f" of {_range(kind.min_length, kind.max_length)} characters" if kind.min_length or kind.max_length else ""
            return "text" + limits
        case inspect.LiteralType():
            return "one of " + ", ".join(str(value) for value in kind.values)
        case inspect.StructType() | inspect.DictType():
            return "a mapping"
        case inspect.ListType() | inspect.VarTupleType():
            return "a list"
        case _:
            return "another value"


def _range(low: float | None, high: float | None, word: str = "") -> str:
    if low is None or (not low and not word):
        return "" if high is None else f"of at most {high}" if word else f"at most {high}"
    return f"{word}{low} up" if high is None else f"{word}{low} to {high}"


def _advice(value: object, kind: inspect.Type) -> str:
    if isinstance(kind, inspect.LiteralType) and isinstance(value, str):
        close = nearest(value.lower(), [str(option) for option in kind.values])
        return f"did you mean {close!r}?" if close else ""
    if isinstance(kind, inspect.StrType) and value is not None and not isinstance(value, str):
        return "put it in quotes if it is text"
    return ""
