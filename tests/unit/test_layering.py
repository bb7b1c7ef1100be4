"""The house keeps its order: a module imports only what stands above it, the pure rooms touch nothing outside, and nothing goes in circles.

Imports are read from the syntax tree, so one inside a function or under TYPE_CHECKING counts like any other.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

SRC: Final = Path(__file__).resolve().parents[2] / "src"
HOUSE: Final = "orchestra"

LAYERS: Final = (
    ("errors",),
    ("ids", "quantity"),
    ("core",),
    ("scheduling",),
    ("metering",),
    ("protocol",),
    ("agents",),
    ("codec",),
    ("intake",),
    ("views", "costviews"),
    ("files",),
    ("root",),
    ("clock", "ledger", "node", "workspace", "notifier", "secret"),
    ("clocks", "ledgers", "nodes", "notifiers", "secrets"),
    ("workspaces",),
    ("stage",),
    ("engine",),
    ("gateway",),
    ("projections", "spending"),
    ("reporting",),
    ("viewing",),
    ("artifacts",),
    ("keeper", "projector", "gatekeeper"),
    ("usecases",),
    ("answers",),
    ("fleetdesk", "spacedesk", "costdesk", "taskdesk", "fallback"),
    ("workbench",),
    ("app", "client"),
    ("rehearse",),
    ("edges",),
    ("bootstrap",),
    ("__main__",),
)
"""From the top of the house to the bottom. Rooms of one layer do not know each other."""

RANK: Final = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}

SETTINGS: Final = frozenset({"settings", "settings_schema"})
SETTINGS_MAY_IMPORT: Final = frozenset({"errors", "ids", "intake", "quantity"}) | SETTINGS
SETTINGS_READERS: Final = frozenset({"bootstrap", "edges", "__main__"})
"""Lower layers get a small options record of their own, so the tree of settings is known at the bottom of the house only."""

ALLOWED_UPWARD: Final = {
    ("orchestra.edges.cli", "orchestra.bootstrap"): "the command is where the process starts, and somebody has to call bootstrap",
}
"""(importer or its package, imported module) -> why this one edge may go against the order."""

PURE: Final = frozenset({"core", "scheduling", "metering", "protocol", "agents", "codec"})
IMPURE_MODULES: Final = frozenset(
    {
        *("asyncio", "concurrent", "datetime", "glob", "io", "logging", "multiprocessing", "os", "pathlib", "platform", "pty", "random"),
        *("secrets", "select", "selectors", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess", "tempfile", "threading", "time"),
        "uuid",
    }
)
IMPURE_CALLS: Final = frozenset({"breakpoint", "input", "open", "print"})

NODE_PYTHON: Final = (3, 8)
NEWER_THAN_NODE_PYTHON: Final = frozenset({"annotationlib", "compression", "graphlib", "tomllib", "zoneinfo"})
"""Standard modules that came after 3.8; a node's own Python may lack them."""


class Import(NamedTuple):
    """One imported module, as written on one line of another."""

    importer: str
    imported: str
    line: int
    for_types: bool = False
    """Only a type checker sees it."""

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_modules(root: Path) -> dict[str, Path]:
    return {module_name(path, root): path for path in sorted((root / HOUSE).rglob("*.py"))}


def imports_of(name: str, path: Path, known: frozenset[str]) -> Iterator[Import]:
    """Yields what the file imports. `from a import b` is module `a.b` if there is one, else `a`."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_bytes(), str(path))
    for_types = {
        each for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" for each in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(name, alias.name, node.lineno, node in for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for name_below in sorted({alias.name for alias in node.names}):
                deeper = f"{base}.{name_below}"
                is_module = deeper in known or (base == HOUSE and not name_below.startswith("__"))
                yield Import(name, deeper if is_module else base, node.lineno, node in for_types)


def room_of(module: str) -> str:
    """Returns the second part of a module's name, or nothing for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def in_house(module: str) -> bool:
    return module == HOUSE or module.startswith(f"{HOUSE}.")


def is_part_of(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def objection_to(edge: Import) -> str | None:
    """Returns which rule of the house an import breaks, or None."""
    source, target = room_of(edge.importer), room_of(edge.imported)
    if source == "testing":
        return None
    if target == "testing":
        return "production never imports orchestra.testing"
    if source == "":
        return "orchestra/__init__.py imports nothing of the house, so that importing one module does not load all"
    if target == "" or source == target:
        return None
    if any(is_part_of(edge.importer, lower) and is_part_of(edge.imported, upper) for lower, upper in ALLOWED_UPWARD):
        return None
    if source in SETTINGS:
        return None if target in SETTINGS_MAY_IMPORT else "settings knows errors, ids and quantity only"
    if target in SETTINGS:
        return None if source in SETTINGS_READERS else "settings are read by the edges and bootstrap only; hand in an options record"
    unplaced = [room for room in (source, target) if room not in RANK]
    if unplaced:
        return f"{unplaced[0]} has no place in the house: add it to LAYERS and to docs/architecture.md"
    return None if RANK[target] < RANK[source] else f"{target} does not stand above {source}"


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Returns the modules of one import cycle in order, or nothing."""
    done: set[str] = set()
    for start in sorted(graph):
        trail = [start]
        pending = [iter(sorted(graph[start]))]
        while pending and start not in done:
            target = next(pending[-1], None)
            if target is None:
                pending.pop()
                done.add(trail.pop())
            elif target in trail:
                return [*trail[trail.index(target) :], target]
            elif target not in done:
                trail.append(target)
                pending.append(iter(sorted(graph[target])))
    return []


MODULES: Final = read_modules(SRC)
IMPORTS: Final = tuple(edge for name, path in MODULES.items() for edge in imports_of(name, path, frozenset(MODULES)))
PURE_FILES: Final = [path for name, path in MODULES.items() if room_of(name) in PURE]
STAGE_FILES: Final = [path for name, path in MODULES.items() if room_of(name) == "stage"]


def test_modules_were_found() -> None:
    assert "orchestra.errors" in MODULES
    assert IMPORTS


def test_a_layer_imports_only_what_stands_above_it() -> None:
    broken = [f"{edge}: {why}" for edge in IMPORTS if in_house(edge.imported) and (why := objection_to(edge))]
    assert broken == []


def test_every_module_has_a_place() -> None:
    placed = {*RANK, *SETTINGS, "testing", ""}
    assert sorted(name for name in MODULES if room_of(name) not in placed) == []


def test_upward_allowances_are_still_needed() -> None:
    """An allowance whose importer exists and no longer uses it is removed."""
    unused = [
        (lower, upper)
        for lower, upper in ALLOWED_UPWARD
        if f"{lower}.main" in MODULES
        and upper in MODULES
        and not any(is_part_of(edge.importer, lower) and is_part_of(edge.imported, upper) for edge in IMPORTS)
    ]
    assert unused == []


def test_no_import_cycles() -> None:
    edges = [edge for edge in IMPORTS if edge.imported in MODULES and not edge.for_types]
    graph = {name: {edge.imported for edge in edges if edge.importer == name} for name in MODULES}
    assert find_cycle(graph) == []


def test_pure_rooms_import_nothing_that_reaches_outside() -> None:
    pure = [edge for edge in IMPORTS if room_of(edge.importer) in PURE]
    assert [str(edge) for edge in pure if edge.imported.partition(".")[0] in IMPURE_MODULES] == []


def test_pure_rooms_open_and_print_nothing() -> None:
    calls = [
        f"{path.relative_to(SRC)}:{node.lineno} calls {node.func.id}()"
        for path in PURE_FILES
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS
    ]
    assert calls == []


def test_stage_imports_the_standard_library_and_itself_only() -> None:
    allowed = sys.stdlib_module_names - NEWER_THAN_NODE_PYTHON
    stage = [edge for edge in IMPORTS if room_of(edge.importer) == "stage" and room_of(edge.imported) != "stage"]
    assert [str(edge) for edge in stage if edge.imported.partition(".")[0] not in allowed] == []


def test_stage_modules_know_each_other_by_relative_names() -> None:
    """On a node the package has another name. What is run by its path is no part of a package there, and stands alone."""
    imports = [(path, node) for path in STAGE_FILES for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.ImportFrom)]
    assert any(node.level for _, node in imports)
    assert [path.name for path, node in imports if node.level > 1 or (node.level and path.name == "rehearsal.py")] == []
    named = [edge for edge in IMPORTS if room_of(edge.importer) == "stage" and in_house(edge.imported)]
    lines = {(module_name(path, SRC), node.lineno) for path, node in imports if node.level}
    assert [str(edge) for edge in named if (edge.importer, edge.line) not in lines] == []


def test_stage_modules_shadow_nothing() -> None:
    assert {path.stem for path in STAGE_FILES} & sys.stdlib_module_names == set()


def test_stage_is_written_in_the_grammar_of_the_oldest_node_python() -> None:
    for path in STAGE_FILES:
        ast.parse(path.read_bytes(), str(path), feature_version=NODE_PYTHON)


# The checks above are checked here, on houses made to break them.


@pytest.mark.parametrize(
    "importer,imported",
    [
        ("orchestra.core.decide", "orchestra.engine.loop"),
        ("orchestra.core.decide", "orchestra.scheduling"),
        ("orchestra.ids", "orchestra.quantity"),
        ("orchestra.ledgers.sqlite", "orchestra.nodes.local"),
        ("orchestra.app", "orchestra.client"),
        ("orchestra.engine.loop", "orchestra.settings"),
        ("orchestra.settings", "orchestra.core.model"),
        ("orchestra.edges.http.server", "orchestra.bootstrap"),
        ("orchestra.edges.cli.main", "orchestra.testing.doubles"),
        ("orchestra.engine.loop", "orchestra.utils"),
        ("orchestra", "orchestra.client"),
    ],
)
def test_a_wrong_import_is_objected_to(importer: str, imported: str) -> None:
    assert objection_to(Import(importer, imported, 1))


@pytest.mark.parametrize(
    "importer,imported",
    [
        ("orchestra.core.decide", "orchestra.core.state"),
        ("orchestra.scheduling.rank", "orchestra.core.graph"),
        ("orchestra.ids", "orchestra.errors"),
        ("orchestra.ledgers.sqlite", "orchestra.ledger"),
        ("orchestra.settings", "orchestra.quantity"),
        ("orchestra.edges.cli.main", "orchestra.settings"),
        ("orchestra.edges.cli.main", "orchestra.bootstrap"),
        ("orchestra.bootstrap", "orchestra.edges.http.server"),
        ("orchestra.testing.world", "orchestra.engine.loop"),
    ],
)
def test_a_right_import_is_not_objected_to(importer: str, imported: str) -> None:
    assert objection_to(Import(importer, imported, 1)) is None


def test_a_cycle_is_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_are_read_in_every_form(tmp_path: Path) -> None:
    room = tmp_path / HOUSE / "core"
    room.mkdir(parents=True)
    (room / "other.py").write_text("")
    file = room / "sample.py"
    file.write_text(
        "import os.path\nfrom . import other\nfrom ..ids import TaskId\nfrom orchestra import engine\ndef f():\n    import time\n"
    )
    names = {edge.imported for edge in imports_of("orchestra.core.sample", file, frozenset({"orchestra.core.other"}))}
    assert names == {"os.path", "orchestra.core.other", "orchestra.ids", "orchestra.engine", "time"}
