"""The settings as one frozen tree, and where each value came from: defaults < file < environment < flags.

The file's top key is `orchestra`. A leaf `tasks.retries` is `ORCHESTRA_TASKS_RETRIES` in the environment. What no setting is called is
refused with the nearest name; a variable that does not begin like any section is somebody else's and left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect

from orchestra.errors import SettingsInvalid
from orchestra.intake.document import Document, Path, parse, show_path
from orchestra.intake.shape import Problem, convert, describe, nearest, unknown
from orchestra.settings_schema import MASK, Section, Sections, is_secret

TOP: Final = "orchestra"
PREFIX: Final = "ORCHESTRA_"
DEFAULT: Final = "default"
FLAG: Final = "flag"
GATEWAY_OWN: Final = frozenset(PREFIX + "GATEWAY_" + name for name in ("CONFIG", "DAY_USD", "FOLDER", "LISTEN"))
"""Variables of the command `orchestra gateway`, which reads no settings."""

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})


class Settings(Sections, frozen=True, kw_only=True):
    """All settings. Made by `load`; `Settings()` is the defaults."""

    origins: dict[str, str] = msgspec.field(default_factory=dict)
    """Where each value came from that is not a default, by path."""

    def origin(self, path: str) -> str:
        """Returns `default`, `file:line`, `env NAME` or `flag` for a leaf such as `tasks.retries`."""
        return self.origins.get(path, DEFAULT)


class Row(NamedTuple):
    """One setting as people are shown it; a secret's value is masked."""

    path: str
    value: str
    origin: str
    description: str


class _Leaf(NamedTuple):
    path: Path
    kind: inspect.Type
    description: str


def load(file_text: str | None, file_name: str, environ: Mapping[str, str], flags: Mapping[str, str]) -> Settings:
    """Returns the settings that hold.

    Args:
        file_text: What the settings file says; None if there is none.
        file_name: Its name, for messages and origins.
        environ: The process environment.
        flags: Leaf path (`tasks.retries`) -> text, as given on the command line.

    Raises:
        SettingsInvalid: A name or value is not usable. `field` is its path, the message says where it was written.
    """
    document = parse(file_text or "", source=file_name, error=SettingsInvalid)
    tree = _file_tree(document)
    origins = {show_path(path): f"{file_name}:{document.locate((TOP, *path)).line}" for path, _ in _walk(tree)}
    for path, text, origin in (*_from_environment(environ), *_from_flags(flags)):
        _put(tree, path, text, origin)
        origins[show_path(path)] = origin
    made = convert(tree, Sections)
    if isinstance(made, list):
        raise _refusal(made[0], origins, document)
    return Settings(**{name: getattr(made, name) for name in Sections.__struct_fields__}, origins=origins)


def rows(settings: Settings) -> list[Row]:
    """Returns every setting in the order of the file, for `orchestra config show`."""
    return list(_rows(settings, (), settings))


def _rows(section: Section, path: Path, settings: Settings) -> Iterator[Row]:
    descriptions = {leaf.path[-1]: leaf.description for leaf in _leaves(type(section), ())}
    for name in section.__struct_fields__:
        if section is settings and name == "origins":
            continue
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _rows(value, (*path, name), settings)
        elif isinstance(value, dict):
            for key, child in value.items():
                yield from (
                    _kind_rows(child, (*path, name, key), settings)
                    if isinstance(child, dict)
                    else _rows(child, (*path, name, key), settings)
                )
        else:
            where = show_path((*path, name))
            yield Row(where, MASK if is_secret(name) and value else _shown(value), settings.origin(where), descriptions.get(name, ""))


def _kind_rows(values: Mapping[str, object], path: Path, settings: Settings) -> Iterator[Row]:
    for name, value in values.items():
        where = show_path((*path, name))
        yield Row(where, MASK if is_secret(name) and value else _shown(value), settings.origin(where), "A setting of that agent kind.")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return f"{value}".lower()
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) and value == int(value) and value < 1e6 else str(value)


def _leaves(section: type[msgspec.Struct], path: Path) -> Iterator[_Leaf]:
    """Yields the settings that have a fixed name, in order."""
    described = inspect.type_info(section)
    assert isinstance(described, inspect.StructType)
    for field in described.fields:
        kind, description = field.type, ""
        while isinstance(kind, inspect.Metadata):
            description = description or str((kind.extra_json_schema or {}).get("description", ""))
            kind = kind.type
        if isinstance(kind, inspect.StructType):
            yield from _leaves(kind.cls, (*path, field.encode_name))
        elif not isinstance(kind, inspect.DictType):
            yield _Leaf((*path, field.encode_name), kind, description)


_LEAVES: Final = {show_path(leaf.path): leaf for leaf in _leaves(Sections, ())}
_VARIABLES: Final = {PREFIX + "_".join(str(step) for step in leaf.path).upper(): leaf for leaf in _LEAVES.values()}
_SECTIONS: Final = tuple(PREFIX + name.upper() + "_" for name in Sections.__struct_fields__ if not any(name == path for path in _LEAVES))


def _file_tree(document: Document) -> dict[str, Any]:
    """Returns what stands under the top key; an empty file or section says nothing."""
    if document.value is None:
        return {}
    if not isinstance(document.value, dict):
        raise SettingsInvalid(f"{document.where(())}: expected a mapping, found {describe(document.value)}", hint=f"its top key is {TOP}:")
    for key in document.value:
        if key != TOP:
            problem = unknown(key, (TOP,), (key,))
            inside = key in Sections.__struct_fields__
            hint = f"indent it under {TOP}:" if inside else problem.hint
            raise SettingsInvalid(f"{document.where((key,))}: {problem.message}", hint=hint, field=key)
    tree = document.value.get(TOP)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsInvalid(f"{document.where((TOP,))}: expected a mapping, found {describe(tree)}", field=TOP)
    return _copied(tree)


def _copied(tree: dict[str, Any], path: Path = ()) -> dict[str, Any]:
    """Returns a copy that may be written to; a section or node with nothing in it counts as an empty one."""
    copy: dict[str, Any] = {}
    for name, value in tree.items():
        here = (*path, name)
        empty = value is None and show_path(here) not in _LEAVES and (path[:1] != ("nodes",) or len(here) < 3)
        copy[name] = {} if empty else _copied(value, here) if isinstance(value, dict) else value
    return copy


def _walk(tree: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, object]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _walk(value, (*path, name))
        else:
            yield (*path, name), value


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[Path, object, str]]:
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        if name in _VARIABLES:
            leaf = _VARIABLES[name]
            yield leaf.path, _read(environ[name], leaf, f"env {name}"), f"env {name}"
        elif name.startswith(_SECTIONS) and name not in GATEWAY_OWN:
            close = nearest(name, _VARIABLES)
            hint = (
                "nodes are named in the file" if name.startswith(PREFIX + "NODES_") else f"did you mean {close}?" if close else "unset it"
            )
            raise SettingsInvalid(f"env {name}: there is no such setting", hint=hint, field=name)


def _from_flags(flags: Mapping[str, str]) -> Iterator[tuple[Path, object, str]]:
    node = {leaf.path[-1]: leaf for leaf in _leaves(_node_type(), ())}
    for name, text in flags.items():
        leaf = _LEAVES.get(name)
        match = re.fullmatch(r"nodes\.(.+)\.([a-z_]+)", name)
        if leaf is None and match is not None and match[2] in node:
            leaf = node[match[2]]._replace(path=("nodes", match[1], match[2]))
        kind = re.fullmatch(r"kinds\.([^.]+)\.([a-z0-9_]+)", name)
        if leaf is None and kind is not None:
            yield ("kinds", kind[1], kind[2]), text, FLAG
            continue
        if leaf is None:
            close = nearest(name, _LEAVES)
            hint = f"did you mean {close!r}?" if close else "`orchestra config show` lists all"
            raise SettingsInvalid(f"flag: there is no setting {name[:80]!r}", hint=hint, field=name[:80])
        yield leaf.path, _read(text, leaf, FLAG), FLAG


def _node_type() -> type[msgspec.Struct]:
    described = inspect.type_info(Sections)
    assert isinstance(described, inspect.StructType)
    kind: inspect.Type = next(field.type for field in described.fields if field.name == "nodes")
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    assert isinstance(kind, inspect.DictType)
    assert isinstance(kind.value_type, inspect.StructType)
    return kind.value_type.cls


def _read(text: str, leaf: _Leaf, origin: str) -> object:
    """Returns what a variable or flag says, as the type its setting has."""
    if not _is_clean(text):
        return _no("", leaf, origin, "text")
    if isinstance(leaf.kind, inspect.BoolType):
        word = text.strip().lower()
        return word in _TRUE if word in _TRUE | _FALSE else _no(text, leaf, origin, "true or false")
    if isinstance(leaf.kind, inspect.IntType):
        return int(text) if re.fullmatch(r"\s*[-+]?[0-9]{1,18}\s*", text) else _no(text, leaf, origin, "a whole number")
    if isinstance(leaf.kind, inspect.FloatType):
        plain = re.fullmatch(r"\s*[-+]?[0-9]{1,18}(?:\.[0-9]{0,18})?\s*", text)
        return float(text) if plain else _no(text, leaf, origin, "a number")
    if isinstance(leaf.kind, inspect.VarTupleType):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _is_clean(text: str) -> bool:
    """Tells whether bytes that were no UTF-8 slipped into a variable: Python hands them over as halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no(text: str, leaf: _Leaf, origin: str, wanted: str) -> object:
    found = MASK if is_secret(str(leaf.path[-1])) else describe(text)
    raise SettingsInvalid(f"{origin}: expected {wanted}, found {found}", field=show_path(leaf.path))


def _put(tree: dict[str, Any], path: Path, value: object, origin: str) -> None:
    for step in path[:-1]:
        child = tree.setdefault(str(step), {})
        if not isinstance(child, dict):
            raise SettingsInvalid(f"{origin}: {step} is {describe(child)} in the file", field=show_path(path))
        tree = child
    tree[str(path[-1])] = value


def _refusal(problem: Problem, origins: dict[str, str], document: Document) -> SettingsInvalid:
    """Returns the error for a value that does not fit, told where it was written."""
    field = show_path(problem.path)
    origin = origins.get(field, "")
    where = origin if origin.startswith("env ") or origin == FLAG else document.where((TOP, *problem.path))
    message = problem.message
    if any(isinstance(step, str) and is_secret(step) for step in problem.path):
        message = re.sub(r"found .*", f"found {MASK}", message, flags=re.DOTALL)
    return SettingsInvalid(f"{where}: {message}", hint=problem.hint, field=field)
