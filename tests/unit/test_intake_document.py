"""Reading text nobody vouches for: what is understood, where it stood, and what is refused before it costs anything."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra.errors import BadInput, PlanInvalid, SettingsInvalid
from orchestra.intake import document as d

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


def refusal(text: str, source: str = "p.yaml") -> str:
    with pytest.raises(PlanInvalid) as caught:
        d.parse(text, source=source)
    return caught.value.message


@pytest.mark.parametrize(
    "text,value",
    [
        ("", None),
        ("a: 2024-01-31", {"a": "2024-01-31"}),
        ("a: 2024-01-31T10:00:00Z", {"a": "2024-01-31T10:00:00Z"}),
        ("a: [yes, no, on, off, y]", {"a": ["yes", "no", "on", "off", "y"]}),
        ("a: [true, False, null, ~, ]", {"a": [True, False, None, None]}),
        ("a: [1, -2, 0o17, 0x1F, 007, 1:30, 1_000]", {"a": [1, -2, 15, 31, "007", "1:30", "1_000"]}),
        ("a: [1.5, 1e3, .5, '1.5', 00.5]", {"a": [1.5, 1000.0, 0.5, "1.5", "00.5"]}),
        ("a: [!!str 12, !!float 3, ! x]", {"a": ["12", 3.0, "x"]}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("{name: flow, tasks: []}", {"name": "flow", "tasks": []}),
        ('a: "\\e[31m\\0"', {"a": "\x1b[31m\x00"}),
        ("a: |\n  $(rm -rf /); `x` 'q' \"\n", {"a": "$(rm -rf /); `x` 'q' \"\n"}),
    ],
)
def test_what_is_read(text: str, value: object) -> None:
    read = d.parse(text, source="p.yaml").value
    assert read == value
    assert json.dumps(read) == json.dumps(value), "types too: True is not 1"


@pytest.mark.parametrize(
    "text,message",
    [
        ("a: 1\nb: 2\na: 3", "p.yaml:3:1: the key 'a' is given twice"),
        ("a:\n\t- b", "p.yaml:2:1: this is not YAML"),
        ("a: [1", "p.yaml:2:1: this is not YAML: while parsing a flow sequence"),
        ("a: !!python/object/apply:os.system [ls]", "p.yaml:1:4: the tag tag:yaml.org,2002:python/object/apply:os.system is not read"),
        ("a: !thing x", "p.yaml:1:4: the tag !thing"),
        ("a: !!timestamp 2024-01-01", "p.yaml:1:4: the tag"),
        ("a: !!int x", "p.yaml:1:4: 'x' is not what its tag !!int says"),
        ("x: 1\n1: a", "p.yaml:2:1: the key '1' is not text"),
        ("null: a", "p.yaml:1:1: the key 'null' is not text"),
        ("? [a]\n: b", "p.yaml:1:3: a key must be text"),
        ("a: &x k\n*x : b", "p.yaml:2:1: a key must be text, not an alias"),
        ("a: .nan", "p.yaml:1:4: .nan is not a usable number"),
        ("a: -.inf", "p.yaml:1:4: -.inf"),
        ("a: 1e999", "p.yaml:1:4: the number 1e999 is too large"),
        (f"a: {'9' * 5000}", "p.yaml:1:4: the number has more than 18 digits"),
        ("a: &x [*x]", "p.yaml:1:8: the alias *x stands for nothing"),
        ("a: *x", "p.yaml:1:"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "p.yaml:3:3: merge keys"),
        ("a: 1\n---\nb: 2", "p.yaml:2:1: a second document"),
        ("a: b\x00c", "p.yaml:1:5: the character U+0000"),
        ("a: b\nc: \x1b[31m", "p.yaml:2:4: the character U+001B"),
        ("a: \ud800", "p.yaml:1:4: the text holds half of a surrogate pair"),
        ("[" * 100_000, "p.yaml:1:"),
        ("- " * 100_000, "p.yaml:1:129: it is nested deeper than 64 levels"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


@pytest.mark.parametrize(
    "text,message",
    [
        ('{"a": 1,\n "b": {"a": 2, "c": 3, "c": 4}}', "p.json:2:24: the key 'c' is given twice"),
        ('{"a": NaN}', "p.json:1:2: a: nan is not a usable number"),
        ('{"a": [1, 1e999]}', "p.json:1:11: a[1]: inf is not a usable number"),
        ('{"a": ' + "1" * 5000 + "}", "p.json:1:2: a: the number has more than 18 digits"),
        ('{"a": "\\ud800"}', "p.json:1:2: a: the text holds half"),
        ('{"a": 1,}', "p.json:1:"),
        ('{"a": 1} {', "p.json:1:10: this is not JSON"),
        ('{"a":' * 100_000, "p.json:1:"),
        ("[" * 100_000 + "]" * 100_000, "p.json:1:1: it is nested deeper"),
    ],
)
def test_what_is_refused_in_json(text: str, message: str) -> None:
    assert refusal(text, "p.json").startswith(message)


def test_billion_laughs_are_refused_before_they_grow() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]" for n in range(9)]
    reader = d._Reader("\n".join(lines), "p.yaml", PlanInvalid)
    with pytest.raises(PlanInvalid, match="there are more than 10000000 values"):
        reader.read_yaml()
    made = sum(len(spots) for spots in reader.spots.values())
    assert made < 200, "values that were really made; the rest was only counted"


def test_many_aliases_are_refused() -> None:
    assert "more than 100 aliases" in refusal("a: &a 1\nb: [" + "*a, " * 101 + "]")
    assert len(d.parse("a: &a 1\nb: [" + "*a, " * 100 + "]", source="p").value["b"]) == 100


def test_aliases_count_towards_depth() -> None:
    chain = "a: &a0 [" + "[" * 30 + "]" * 30 + "]\n" + "b: " + "[" * 40 + "*a0" + "]" * 40
    assert "nested deeper" in refusal(chain)


def test_too_large_a_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(d, "BYTES_MAX", 10)
    assert refusal("a: 'äääää'").startswith("p.yaml:1:1: the document has 15 bytes")


@pytest.mark.parametrize(
    "path,spot",
    [
        ((), (1, 1)),
        (("tasks",), (2, 1)),
        (("tasks", 1), (4, 5)),
        (("tasks", 1, "retries"), (5, 5)),
        (("tasks", 1, "needs", 1), (6, 16)),
        (("tasks", 1, "missing"), (4, 5)),
        (("tasks", 9, "missing"), (2, 1)),
        (("name", "x"), (1, 1)),
    ],
)
def test_places(path: d.Path, spot: tuple[int, int]) -> None:
    text = "name: x\ntasks:\n  - id: a\n  - id: b\n    retries: 1\n    needs: [a, b]"
    assert d.parse(text, source="p").locate(path) == spot


@given(PLAIN.filter(lambda value: isinstance(value, dict | list)), st.sampled_from([None, 1, 2]))
def test_json_reads_as_written_and_knows_its_places(value: object, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    document = d.parse(text, source="p.json")
    assert document.value == value
    lines = text.split("\n")
    pending: list[tuple[d.Path, object]] = [((), value)]
    while pending:
        path, part = pending.pop()
        spot = document.locate(path)
        rest = lines[spot.line - 1][spot.column - 1 :]
        said = path[-1] if path and isinstance(path[-1], str) else part
        assert rest.startswith("{" if isinstance(said, dict) else "[" if isinstance(said, list) else json.dumps(said))
        if isinstance(part, dict):
            pending += [((*path, key), child) for key, child in part.items()]
        elif isinstance(part, list):
            pending += [((*path, index), child) for index, child in enumerate(part)]


@settings(max_examples=300)
@given(st.text() | st.text(alphabet="{}[]&*!a: \n-\"'<>|%@`#,?\t1.", max_size=60))
def test_no_text_escapes(text: str) -> None:
    for source in ("p.yaml", "p.json"):
        message = f"{source}:"
        try:
            d.parse(text, source=source, error=SettingsInvalid)
        except SettingsInvalid as error:
            message = error.message
        assert message.startswith(f"{source}:")


@given(PLAIN)
def test_plain_values_pass(value: object) -> None:
    d.check_plain(value)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {1: 2}, {None: 1}, {"a": {1}}, "\udc80", {"\ud800": 1}, 10**18, b"x", object()]
)
def test_what_is_no_plain_value(value: object) -> None:
    with pytest.raises(BadInput):
        d.check_plain({"in": [value]})


def test_a_value_that_holds_itself() -> None:
    loop: list[object] = []
    loop += [loop, loop]
    with pytest.raises(BadInput, match="nested deeper"):
        d.check_plain(loop)


def test_paths_as_people_write_them() -> None:
    assert d.show_path(("tasks", 3, "needs", 0)) == "tasks[3].needs[0]"
    assert d.show_path(()) == ""
