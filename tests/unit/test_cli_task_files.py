"""Patches as a person sees them on a terminal: coloured, and with nothing in them that acts on it."""

from __future__ import annotations

import io

import pytest

from orchestra.edges.cli.render import Face, Renderer
from orchestra.edges.cli.task_files import show_patch, show_stat
from orchestra.protocol.patch import files_of

PATCH = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n same\n-old\x1b[2J\n+new\n"


class Terminal(io.StringIO):
    """A terminal that is only written to."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def test_a_patch_is_coloured(terminal: Terminal) -> None:
    show_patch(Renderer(Face.HUMAN, terminal, io.StringIO()), PATCH)
    lines = terminal.getvalue().splitlines()
    assert lines[1] == "\x1b[1m--- a/x\x1b[0m", "a header is no removed line"
    assert lines[3:5] == ["\x1b[36m@@ -1,2 +1,2 @@\x1b[0m", " same"]
    assert lines[5].startswith("\x1b[31m-old")
    assert "\x1b[2J" not in lines[5]
    assert lines[6] == "\x1b[32m+new\x1b[0m"


def test_the_bars_of_a_stat(terminal: Terminal) -> None:
    show_stat(Renderer(Face.HUMAN, terminal, io.StringIO()), files_of(PATCH))
    assert terminal.getvalue().splitlines() == ["x |      2 \x1b[32m+\x1b[0m\x1b[31m-\x1b[0m", "1 file, 1 line added, 1 removed"]
