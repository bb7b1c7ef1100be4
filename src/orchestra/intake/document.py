"""YAML and JSON text as plain values that know where they stood.

The reader is made for text that nobody vouches for. It works through parser events in one pass without recursion, so it can stop at a
limit before anything grows: size, depth, aliases, and the number of values that aliases unfold to. Scalars follow the YAML 1.2 core schema
and no more: dates, `yes`, `0777` and `1:30` are text. What two parsers could read in two ways (a key given twice, a merge key) is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NoReturn

import yaml

from orchestra.errors import BadInput, PlanInvalid
from orchestra.intake.places import Plain, Spot, json_spots, json_twin

Path = tuple[str | int, ...]
"""Keys and list positions that lead from the top of a document to one value."""

BYTES_MAX: Final = 64 * 1024 * 1024
"""A hundred thousand tasks of 600 bytes each."""
DEPTH_MAX: Final = 64
"""A plan has about six levels; the rest is room for what `requirements` holds."""
ALIASES_MAX: Final = 100
VALUES_MAX: Final = 10_000_000
"""Values after aliases are unfolded: fifty each for the most tasks a plan may have."""
INT_DIGITS_MAX: Final = 18
"""Every such number fits 64 bits with its sign."""

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG: Final = "tag:yaml.org,2002:"
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


class Document:
    """A parsed text: its `value`, and where each part of it stood."""

    __slots__ = ("_spots", "_text", "source", "value")

    def __init__(self, value: Plain, *, source: str, text: str, spots: dict[int, dict[str | int, Spot]] | None) -> None:
        self.value = value
        self.source = source
        self._text = text
        self._spots = spots

    def locate(self, path: Path) -> Spot:
        """Returns where the value of `path` starts: its key in a mapping, else the item. What is missing is where it would belong."""
        if self._spots is None:
            self._spots = json_spots(self._text, self.value)
        value, spot = self.value, Spot(1, 1)
        for step in path:
            known = self._spots.get(id(value), {})
            if step not in known:
                break
            spot, value = known[step], value[step]
        return spot

    def where(self, path: Path) -> str:
        """Returns `source:line:column` of the value."""
        spot = self.locate(path)
        return f"{self.source}:{spot.line}:{spot.column}"


def show_path(path: Path) -> str:
    """Returns a path as people write it: `tasks[3].needs[0]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def parse(text: str, *, source: str, error: type[BadInput] = PlanInvalid) -> Document:
    """Returns what the text says. JSON is read as JSON; all else, and JSON-like text in a file not called so, as YAML.

    Args:
        text: The whole document.
        source: Name of it for messages.
        error: Class to raise.

    Raises:
        BadInput: Of class `error`; the message begins with `source:line:column:`.
    """
    reader = _Reader(text, source, error)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as broken:
        reader.fail(_spot_at(text, broken.start), "the text holds half of a surrogate pair, which is no character")
    if size > BYTES_MAX:
        reader.fail(Spot(1, 1), f"the document has {size} bytes", hint=f"at most {BYTES_MAX} are read")
    if text.lstrip()[:1] in ("{", "["):
        try:
            return Document(reader.read_json(), source=source, text=text, spots=None)
        except json.JSONDecodeError as broken:
            if source.endswith(".json"):
                reader.fail(Spot(broken.lineno, broken.colno), f"this is not JSON: {broken.msg}")
    return Document(reader.read_yaml(), source=source, text=text, spots=reader.spots)


def check_plain(value: object, *, error: type[BadInput] = BadInput) -> None:
    """Checks that a value from elsewhere is one that JSON can say, within the limits of depth and size.

    Raises:
        BadInput: Of class `error`, with the path of the offending part.
    """
    for path, problem in _impurities(value):
        raise error(problem, field=show_path(path))


def _impurities(top: object) -> Iterator[tuple[Path, str]]:
    """Yields what in a value is not plain data. Goes down a list of its own, so that no nesting meets Python's recursion limit."""
    pending: list[tuple[object, Any]] = [(top, ())]
    count = 0
    while pending:
        value, trail = pending.pop()
        count += 1
        if count > VALUES_MAX:
            yield (), f"there are more than {VALUES_MAX} values"
            return
        problem = ""
        if isinstance(value, str):
            problem = _text_problem(value)
        elif isinstance(value, bool) or value is None:
            continue
        elif isinstance(value, int):
            problem = f"the number has more than {INT_DIGITS_MAX} digits" if abs(value) >= 10**INT_DIGITS_MAX else ""
        elif isinstance(value, float):
            problem = "" if math.isfinite(value) else f"{value} is not a usable number"
        elif isinstance(value, Mapping):
            pending += [(child, (trail, key)) for key, child in value.items() if isinstance(key, str)]
            bad = next((key for key in value if not isinstance(key, str) or _text_problem(key)), None)
            problem = "" if bad is None and None not in value else f"the key {bad!r} is not usable text"
        elif isinstance(value, list | tuple):
            pending += [(child, (trail, index)) for index, child in enumerate(value)]
        else:
            problem = f"a {type(value).__name__} is not plain data"
        path = _unfold(trail) if problem or (isinstance(value, Mapping | list | tuple) and value) else ()
        if len(path) >= DEPTH_MAX:
            yield path[:4], f"it is nested deeper than {DEPTH_MAX} levels"
            return
        if problem:
            yield path, problem


def _unfold(trail: Any) -> Path:
    """Returns the path of a `(rest, step)` chain, which the walk keeps because it is cheaper to grow than a tuple of steps."""
    steps: list[str | int] = []
    while trail:
        trail, step = trail
        steps.append(step)
    return tuple(reversed(steps))


def _text_problem(text: str) -> str:
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "the text holds half of a surrogate pair, which is no character"
    return ""


def _spot_at(text: str, offset: int) -> Spot:
    before = text[:offset]
    return Spot(before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)


def _start(event: yaml.Event) -> Spot:
    mark = event.start_mark
    return Spot(mark.line + 1, mark.column + 1) if mark else Spot(1, 1)


class _Frame:
    """A mapping or list that is still being read."""

    __slots__ = ("anchor", "items", "key", "key_spot", "size", "spots")

    def __init__(self, items: dict[str, Plain] | list[Plain], anchor: str | None, spots: dict[str | int, Spot]) -> None:
        self.items = items
        self.anchor = anchor
        self.spots = spots
        self.key: str | None = None
        self.key_spot = Spot(1, 1)
        self.size = 1


class _Reader:
    """One reading of one text."""

    def __init__(self, text: str, source: str, error: type[BadInput]) -> None:
        self.text = text
        self.source = source
        self.error = error
        self.spots: dict[int, dict[str | int, Spot]] = {}
        self.stack: list[_Frame] = []
        self.anchors: dict[str, tuple[Plain, int]] = {}
        self.aliases = 0
        self.values = 0
        self.documents = 0
        self.top: Plain = None

    def fail(self, spot: Spot, message: str, *, hint: str = "") -> NoReturn:
        raise self.error(f"{self.source}:{spot.line}:{spot.column}: {message}", hint=hint)

    # --- JSON ---

    def read_json(self) -> Plain:
        twins: list[str] = []

        def pairs(items: list[tuple[str, Plain]]) -> dict[str, Plain]:
            made = dict(items)
            if len(made) < len(items):
                seen: set[str] = set()
                twins.append(next(key for key, _ in items if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
            return made

        def whole(digits: str) -> int:
            return int(digits) if len(digits) <= INT_DIGITS_MAX + 1 else 10**INT_DIGITS_MAX

        try:
            value = json.loads(self.text, object_pairs_hook=pairs, parse_int=whole, parse_float=float)
        except RecursionError:
            self.fail(Spot(1, 1), f"it is nested deeper than {DEPTH_MAX} levels")
        if twins:
            spot = json_twin(self.text, twins[0])
            self.fail(spot, f"the key {twins[0]!r} is given twice", hint="remove one of the two")
        document = Document(value, source=self.source, text=self.text, spots=None)
        for path, problem in _impurities(value):
            self.fail(document.locate(path), f"{show_path(path) or 'the document'}: {problem}")
        return value

    # --- YAML ---

    def read_yaml(self) -> Plain:
        try:
            for event in yaml.parse(self.text, Loader=_LOADER):
                self._take(event)
        except yaml.MarkedYAMLError as broken:
            mark = broken.problem_mark or broken.context_mark
            words = "; ".join(part for part in (broken.context, broken.problem) if part)
            hint = "indent with spaces, not tabs" if "'\\t'" in words or "tab" in words else ""
            self.fail(Spot(mark.line + 1, mark.column + 1) if mark else Spot(1, 1), f"this is not YAML: {words}", hint=hint)
        except yaml.reader.ReaderError as broken:
            character = broken.character if isinstance(broken.character, int) else ord(broken.character[:1] or " ")
            found = next((at for at, one in enumerate(self.text) if ord(one) == character), 0)
            self.fail(
                _spot_at(self.text, found),
                f"the character U+{character:04X} may not stand in YAML as it is",
                hint='write it as an escape in double quotes, such as "\\e" or "\\0"',
            )
        except yaml.YAMLError as broken:
            self.fail(Spot(1, 1), f"this is not YAML: {broken}")
        return self.top

    def _take(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.ScalarEvent):
            spot = _start(event)
            frame = self.stack[-1] if self.stack else None
            if frame is not None and frame.key is None and isinstance(frame.items, dict):
                self._open_key(frame, event, spot)
                return
            value = self._scalar(event, spot)
            if event.anchor:
                self.anchors[event.anchor] = (value, 1)
            self._place(value, spot, 1)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._open(event)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            frame = self.stack.pop()
            if frame.anchor:
                self.anchors[frame.anchor] = (frame.items, frame.size)
            if self.stack:
                self.stack[-1].size += frame.size
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                self.fail(_start(event), "a second document starts here", hint="write one a file")

    def _open_key(self, frame: _Frame, event: yaml.ScalarEvent, spot: Spot) -> None:
        key = self._scalar(event, spot)
        if not isinstance(key, str):
            self.fail(spot, f"the key {event.value!r} is not text", hint="put it in quotes")
        if key == "<<" and event.implicit[0]:
            self.fail(spot, "merge keys (<<) are not read", hint="write the fields out")
        assert isinstance(frame.items, dict)
        if key in frame.items:
            self.fail(spot, f"the key {key[:80]!r} is given twice", hint=f"it stands in line {frame.spots[key].line} already")
        frame.key, frame.key_spot = key, spot

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        spot = _start(event)
        mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in (None, "!", _TAG + ("map" if mapping else "seq")):
            self.fail(spot, f"the tag {event.tag} is not read", hint="plans hold plain data only")
        if len(self.stack) >= DEPTH_MAX:
            self.fail(spot, f"it is nested deeper than {DEPTH_MAX} levels")
        if self.stack and self.stack[-1].key is None and isinstance(self.stack[-1].items, dict):
            self.fail(spot, "a key must be text, not a list or mapping")
        items: dict[str, Plain] | list[Plain] = {} if mapping else []
        spots = self.spots[id(items)] = {}
        self._place(items, spot, 1)
        self.stack.append(_Frame(items, event.anchor, spots))
        if event.anchor:
            self.anchors.pop(event.anchor, None)

    def _alias(self, event: yaml.AliasEvent) -> None:
        spot = _start(event)
        self.aliases += 1
        if self.aliases > ALIASES_MAX:
            self.fail(spot, f"there are more than {ALIASES_MAX} aliases", hint="write the values out")
        if event.anchor not in self.anchors:
            self.fail(spot, f"the alias *{event.anchor} stands for nothing that ends before it")
        value, size = self.anchors[event.anchor]
        frame = self.stack[-1]
        if frame.key is None and isinstance(frame.items, dict):
            self.fail(spot, "a key must be text, not an alias")
        if len(self.stack) + _depth(value) > DEPTH_MAX:
            self.fail(spot, f"it is nested deeper than {DEPTH_MAX} levels")
        frame.size += size - 1
        self._place(value, spot, size)

    def _place(self, value: Plain, spot: Spot, size: int) -> None:
        self.values += size
        if self.values > VALUES_MAX:
            self.fail(spot, f"there are more than {VALUES_MAX} values", hint="aliases count as what they stand for")
        if not self.stack:
            self.top = value
            return
        frame = self.stack[-1]
        if not isinstance(value, dict | list) or size > 1:
            frame.size += 1
        if isinstance(frame.items, list):
            frame.spots[len(frame.items)] = spot
            frame.items.append(value)
        else:
            assert frame.key is not None
            frame.spots[frame.key] = frame.key_spot
            frame.items[frame.key] = value
            frame.key = None

    def _scalar(self, event: yaml.ScalarEvent, spot: Spot) -> Plain:
        text = event.value
        if event.tag is None or event.tag == "!":
            return self._plain(text, spot) if event.implicit[0] and event.tag is None else text
        kind = event.tag.removeprefix(_TAG)
        if kind == "str":
            return text
        if kind not in ("null", "bool", "int", "float"):
            self.fail(spot, f"the tag {event.tag} is not read", hint="plans hold plain data only")
        value = self._plain(text, spot)
        value = float(value) if kind == "float" and type(value) is int else value
        if type(value) is not {"null": type(None), "bool": bool, "int": int, "float": float}[kind]:
            self.fail(spot, f"{text[:80]!r} is not what its tag !!{kind} says")
        return value

    def _plain(self, text: str, spot: Spot) -> Plain:
        if text in _NULLS:
            return None
        if text in _BOOLS:
            return _BOOLS[text]
        if text[0] not in "+-.0123456789":
            return text
        if _INT.fullmatch(text):
            if len(text) > INT_DIGITS_MAX + 1:
                self.fail(spot, f"the number has more than {INT_DIGITS_MAX} digits", hint="put it in quotes if it is text")
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        if _NOT_FINITE.fullmatch(text):
            self.fail(spot, f"{text} is not a usable number", hint="use a finite number, or quotes if it is text")
        if _FLOAT.fullmatch(text) and not _leads_with_zero(text):
            value = float(text)
            if not math.isfinite(value):
                self.fail(spot, f"the number {text[:40]} is too large")
            return value
        return text


def _leads_with_zero(text: str) -> bool:
    """Tells `007`, which YAML 1.1 and 1.2 read as two different numbers: it stays text."""
    digits = text.lstrip("+-")
    return len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()


def _depth(top: Plain) -> int:
    """Returns the levels of a value that is known to be no deeper than the limit."""
    level, current = 0, [top]
    while current := [one for one in current if isinstance(one, dict | list)]:
        level += 1
        unique = {id(child): child for one in current for child in (one.values() if isinstance(one, dict) else one)}
        current = list(unique.values())
    return level
