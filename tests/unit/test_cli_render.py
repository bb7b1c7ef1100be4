"""The renderer: nothing a task or agent says can act on a terminal, tables align, colour is sparing and can be refused."""

from __future__ import annotations

import io
import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.edges.cli.render import COLOURS, Face, Part, Renderer, Styled, clean, cut, json_line, one_line, status_word, width_of
from orchestra.errors import BadInput

HOSTILE = "a\x1b[2Jb\x07c\x9bd\u202ee\u2066f\x00g\rh\x7fi\u200fj"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_renderer(out: io.StringIO, face: Face = Face.HUMAN) -> Renderer:
    return Renderer(face, out, out)


def acts(char: str) -> bool:
    """Tells whether a character does something instead of being seen."""
    return (unicodedata.category(char) == "Cc" and char not in "\n\t") or unicodedata.bidirectional(char) in (
        *("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"),
    )


@given(st.text())
def test_clean_text_cannot_act(text: str) -> None:
    assert not any(acts(char) for char in clean(text))
    assert not set("\n\t\u2028\u2029") & set(one_line(text))
    clean(text).encode()


def test_clean_text_keeps_what_is_harmless() -> None:
    assert clean("naïve 日本語 ✓\n\tx") == "naïve 日本語 ✓\n\tx"
    assert clean("\ud800") == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("face", Face)
def test_no_face_lets_hostile_text_through(face: Face) -> None:
    out = io.StringIO()
    render = make_renderer(out, face)
    render.show({"a": HOSTILE}, lambda: render.table(["x"], [[Styled(HOSTILE, "red")]]))
    render.line(HOSTILE)
    render.note(HOSTILE)
    render.data(HOSTILE)
    render.fields([("a", HOSTILE)])
    render.error(BadInput(HOSTILE, hint=HOSTILE, field=HOSTILE))
    assert not any(acts(char) for char in out.getvalue())


@given(st.text())
def test_json_means_the_same_and_cannot_act(text: str) -> None:
    if any(0xD800 <= ord(char) < 0xE000 for char in text):
        return
    line = json_line({"text": text})
    assert json.loads(line) == {"text": text}
    assert not any(acts(char) or char in "\n\u2028" for char in line)


def test_tables_align_also_with_wide_characters() -> None:
    out = io.StringIO()
    make_renderer(out).table(["name", "n", "what"], [["日本", "5", "x"], ["ab", "12", "y\nz"]], right=("n",))
    assert out.getvalue().splitlines() == ["name   n  what", "日本   5  x", "ab    12  y z"]


def test_colour_only_on_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def shown(out: io.StringIO) -> str:
        make_renderer(out).line("a ", status_word("failed"))
        return out.getvalue()

    assert shown(Terminal()) == "a \x1b[31mfailed\x1b[0m\n"
    assert shown(io.StringIO()) == "a failed\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(Terminal()) == "a failed\n"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert shown(Terminal()) == "a failed\n"


def test_coloured_cells_keep_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    out, plain = Terminal(), io.StringIO()
    rows: list[list[Part]] = [["a", status_word("failed"), "x"], ["bb", status_word("running"), "y"]]
    make_renderer(out).table(["n", "status", "what"], rows)
    make_renderer(plain).table(["n", "status", "what"], rows)
    bare = out.getvalue()
    for code in COLOURS.values():
        bare = bare.replace(f"\x1b[{code}m", "")
    assert bare.replace("\x1b[0m", "") == plain.getvalue()
    assert "\x1b[31mfailed" in out.getvalue()


def test_tables_end_at_the_edge_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    make_renderer(out).table(["a", "b"], [["x", "y" * 50]])
    assert max(width_of(line) for line in out.getvalue().splitlines()) <= 20


@given(st.text(st.characters(exclude_categories=("C", "Z"))), st.integers(0, 30))
def test_a_cut_line_fits(text: str, width: int) -> None:
    assert width_of(cut(text, width)) <= width


def test_quiet_gives_data_and_errors_only() -> None:
    out = io.StringIO()
    render = make_renderer(out, Face.QUIET)
    render.show({"a": 1}, lambda: render.line("human"))
    render.note("note")
    assert out.getvalue() == ""
    render.data("data")
    render.error(BadInput("no", hint="yes"))
    assert out.getvalue() == "data\nerror: no\nhint: yes\n"
