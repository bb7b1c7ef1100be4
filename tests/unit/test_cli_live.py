"""The live view: within the terminal whatever its size, and what matters on it."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from orchestra.edges.cli.live import LiveScreen, eta_ms, lines_of
from orchestra.testing.fake_usecases import make_plan, make_status, make_task


def wide_plan(count: int) -> Any:
    words = ("completed", "running", "failed", "queued", "retry_wait", "unknown", "cancelled")
    tasks = [
        make_task(
            f"demo/t{n}-{'長' * (n % 9)}",
            words[n % 7],
            activity="busy\x1b[2J\n" * 9,
            progress=0.5,
            needs=() if n < 50 else (f"demo/t{n - 50}-{'長' * ((n - 50) % 9)}",),
        )
        for n in range(count)
    ]
    return make_plan("running", *tasks)


@pytest.mark.parametrize("width", [1, 20, 80, 200])
@pytest.mark.parametrize("height", [0, 1, 3, 10, 24, 60])
@pytest.mark.parametrize("count", [0, 1, 15, 300])
def test_the_view_stays_within_the_terminal(width: int, height: int, count: int) -> None:
    lines = lines_of(wide_plan(count), 4, width, height, ["stopping " * 30, "again"])
    assert len(lines) <= height
    assert all(line.cell_len <= width for line in lines)
    assert not any(char in line.plain for line in lines for char in "\x1b\n")


def test_the_view_shows_what_matters() -> None:
    tasks = [
        make_task("demo/plan", "completed"),
        make_task("demo/core", "running", needs=("demo/plan",), agents=(7,), activity="writing", progress=0.4, rank_ms=9000, ended_ms=0),
        make_task("demo/http", "failed", needs=("demo/plan",), reason="exit code 3"),
        make_task("demo/docs", "pending", needs=("demo/core",), rank_ms=4000),
    ]
    text = "\n".join(line.plain.rstrip() for line in lines_of(make_plan("running", *tasks), 2, 80, 23, ["stopping"]))
    assert "demo  2.0s  1/4 done, 1 running, 1 waiting, 1 failed" in text
    assert "50%  ETA 7.5s" in text, "core has run for 1.5 s of the 9"
    assert "stage 1  ■ plan" in text
    assert "stage 2  ▶ core  ✗ http" in text
    assert "#7     core     1.5s  40%  writing" in text
    assert "next: docs" in text
    assert "✗ http: exit code 3" in text
    assert text.endswith("stopping")


def test_the_rest_takes_its_longest_path_or_its_work_shared_out() -> None:
    tasks = [make_task(f"demo/{n}", "queued", estimate_ms=1000, rank_ms=1000) for n in range(10)]
    assert eta_ms(make_plan("running", *tasks), 2) == 5000
    assert eta_ms(make_plan("running", *tasks), 100) == 1000
    assert eta_ms(make_plan("completed", make_task()), 1) == 0


def test_what_has_run_already_is_not_ahead() -> None:
    last = [make_task(f"demo/l{n}", "running", estimate_ms=60_000, rank_ms=70_000, duration_ms=45_000) for n in range(2)]
    assert eta_ms(make_plan("running", *last), 6) == 25_000
    late = make_task("demo/late", "running", estimate_ms=60_000, rank_ms=60_000, duration_ms=90_000)
    assert eta_ms(make_plan("running", late), 6) == 0


def test_a_lost_node_is_named_in_one_line() -> None:
    lost = ("node majin is out of sight: the connection to it broke", "lost sight of demo/a: node majin is lost")
    lines = [line.plain for line in lines_of(make_plan("running", make_task("demo/a", "unknown")), 4, 200, 24, (), lost)]
    assert lines.count("; ".join(lost)) == 1
    assert lines_of(make_plan("running"), 4, 30, 24, (), lost)[2].plain == "node majin is out of sight: t…"


def test_the_live_screen_draws_and_cleans_up() -> None:
    console = Console(width=80, height=24, force_terminal=True, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - closed below
    screen = LiveScreen(console)
    with screen:
        screen.say("early")
        screen.draw(make_plan("running", make_task("demo/a", "running")), make_status(warnings=("node far is out of sight",)))
        screen.say("stopping")
    console.file.close()
    text = console.export_text()
    assert "demo" in text
    assert "node far is out of sight" in text
    assert "stopping" in text
