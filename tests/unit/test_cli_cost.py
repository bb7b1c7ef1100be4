"""`orchestra cost` and `orchestra limits`: tables, CSV, JSON, and the view that is drawn again and again."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from orchestra.costviews import (
    BudgetsReply,
    BudgetView,
    CostReply,
    EstimateReply,
    LimitsReply,
    LimitView,
    Range,
    TaskEstimate,
)
from orchestra.edges.cli.budget_asked import SCOPES
from orchestra.edges.cli.cost import BY
from orchestra.edges.cli.cost_live import HOUR_MS, PACE_MS, LiveScreen, Look, Pace, bar, lines_of
from orchestra.edges.cli.cost_text import csv_of
from orchestra.edges.cli.main import cli
from orchestra.edges.cli.session import Session
from orchestra.errors import CoordinatorUnreachable
from orchestra.metering import books
from orchestra.spending import BY as COUNTED_BY
from orchestra.testing.fake_usecases import MOMENT_MS, FakeWiring, make_cost, make_cost_row
from orchestra.usecases import CostParams, EstimateParams, SetBudgetParams

DAY = "2023-11-14"
"""Of `MOMENT_MS`."""


def call(wiring: FakeWiring, *args: str, session: Session | None = None) -> Result:
    return CliRunner().invoke(cli, list(args), obj=session or Session(wiring))


def scripted(**answers: Any) -> FakeWiring:
    wiring = FakeWiring()
    for method, answer in answers.items():
        wiring.fake.on(method, *(answer if isinstance(answer, list) else [answer]))
    return wiring


def test_what_may_be_asked_for_is_what_there_is() -> None:
    assert set(BY) == set(COUNTED_BY)
    assert set(SCOPES) == set(books.BUDGETED)


def test_report_is_a_table_with_a_total_and_where_it_comes_from() -> None:
    rows = (
        make_cost_row("demo/a", said_usd_micros=1_400_000, difference_usd_micros=100_000, assumed_requests=2, unpriced_requests=1),
        make_cost_row(
            "demo/b", 20_000, said_usd_micros=None, difference_usd_micros=None, uncounted_attempts=1, reserved_usd_micros=500_000
        ),
        make_cost_row("", 30_000),
    )
    wiring = scripted(cost=make_cost("task", *rows))
    found = call(wiring, "cost", "report", "--plan", "demo", "--top", "3")
    assert wiring.fake.asked("cost") == [CostParams("task", "demo", None, 3)]
    header, a, b, none, total = found.stdout.splitlines()
    assert header.split("  ")[0] == "task"
    assert a.split()[:9] == ["demo/a", "10", "100", "200", "3000", "400", "$1.50", "$1.40", "+$0.10"]
    assert a.endswith("2 requests assumed, 1 requests without a known price")
    assert b.split()[6:9] == ["$0.0200", "-", "-"]
    assert b.endswith("1 attempts past the gateway, $0.50 reserved")
    assert none.startswith("(none)")
    assert total.split()[:2] == ["total", "30"]
    assert found.stderr == "from gateway; prices of 2026-11-21\n"


def test_report_of_nothing_and_of_more_than_is_shown() -> None:
    assert call(scripted(cost=make_cost()), "cost", "report").stdout == "nothing was spent\n"
    reply = CostReply("task", "agents", "said", False, MOMENT_MS, (make_cost_row("a"),), make_cost_row("total"), left_out=4)
    assert call(scripted(cost=reply), "cost", "report").stderr.splitlines() == ["and 4 more, counted in the total", "said"]


def test_report_as_csv() -> None:
    rows = (make_cost_row("demo/a", 1_234_567, difference_usd_micros=-50, said_usd_micros=None), make_cost_row("=1+1"))
    found = call(scripted(cost=make_cost("model", *rows)), "cost", "report", "--by", "model", "--csv")
    header, first, formula, total = csv.reader(io.StringIO(found.stdout))
    assert header[:9] == [
        "model", "requests", "input_tokens", "cache_write_tokens", "cache_read_tokens", "output_tokens",
        "settled_usd", "said_usd", "difference_usd",
    ]  # fmt: skip
    assert first[:9] == ["demo/a", "10", "100", "200", "3000", "400", "1.234567", "", "-0.000050"]
    assert formula[0] == "'=1+1"
    assert total[0] == "total"
    assert found.stderr == ""


def test_csv_and_json_contradict_each_other() -> None:
    found = call(scripted(), "cost", "report", "--csv", "--json")
    assert found.exit_code == 2
    assert "contradict" in found.stderr


def test_csv_without_rows_is_a_header_and_a_total() -> None:
    assert len(csv_of(make_cost()).splitlines()) == 2


def test_report_as_json_is_the_reply() -> None:
    reply = make_cost("task", make_cost_row("demo/a"))
    told = json.loads(call(scripted(cost=reply), "cost", "report", "--json").stdout)
    assert (told["source"], told["rows"][0]["name"], told["total"]["settled_usd_micros"]) == ("gateway", "demo/a", 1_500_000)


BUDGETS = BudgetsReply(
    "gateway", "as kept", (BudgetView("day", DAY, 10_000_000, 9_000_000, 500_000), BudgetView("task", "demo/a", 1_000_000, 0, 0))
)


def test_budgets_are_listed() -> None:
    wiring = scripted(budgets=BUDGETS)
    header, day, task = call(wiring, "cost", "budget").stdout.splitlines()
    assert header.split() == ["scope", "name", "budget", "settled", "reserved", "used"]
    assert day.split() == ["day", DAY, "$10.00", "$9.00", "$0.50", "90%"]
    assert task.split()[:2] == ["task", "demo/a"]
    assert len(call(wiring, "cost", "budget", "task").stdout.splitlines()) == 2
    assert call(wiring, "cost", "budget", "plan").stdout == "there are no budgets\n"


@pytest.mark.parametrize(
    "args,asked",
    [
        (("day", "--usd", "20"), SetBudgetParams("day", "", 20_000_000)),
        (("task", "demo/a", "--usd", "2.5"), SetBudgetParams("task", "demo/a", 2_500_000)),
        (("agent", "7", "--usd", "0"), SetBudgetParams("agent", "7", 0)),
        (("plan", "demo", "--none"), SetBudgetParams("plan", "demo", -1)),
    ],
)
def test_a_budget_is_set_or_lifted(args: tuple[str, ...], asked: SetBudgetParams) -> None:
    wiring = scripted(set_budget=BUDGETS)
    assert call(wiring, "cost", "budget", *args).exit_code == 0
    assert wiring.fake.asked("set_budget") == [asked]


@pytest.mark.parametrize("args", [("day", "--usd", "1", "--none"), ("--usd", "1"), ("--none",), ("day", "--usd", "-1"), ("model",)])
def test_a_budget_that_cannot_be_is_refused(args: tuple[str, ...]) -> None:
    wiring = scripted()
    assert call(wiring, "cost", "budget", *args).exit_code == 2
    assert wiring.fake.calls == []


def test_limits() -> None:
    reply = LimitsReply(
        "gateway",
        "as they stand",
        (
            LimitView("anthropic", "main", "opus-5", "requests", 50, 40, 10, 80, True, 2, 3, 8, 1500, 25),
            LimitView("local", "", "m", "", None, None, None, None),
        ),
        ("openai",),
    )
    found = call(scripted(limits=reply), "limits")
    _, first, second, down = found.stdout.splitlines()
    assert first.split() == ["anthropic.main", "opus-5", "requests", "50", "80%", "10", "25", "3/8", "2", "1.5s"]
    assert second.split()[:3] == ["local", "m", "none"]
    assert down == "down: openai"
    assert found.stderr == "as they stand\n"
    assert call(scripted(limits=LimitsReply("", "none runs", ())), "limits").stdout == ""


PLAN = "name: demo\ntasks:\n  - {id: a, run: 'true'}\n"
ESTIMATE = EstimateReply(
    plan="demo",
    tasks=(
        TaskEstimate(
            "demo/a", "claude", "coding", Range(1_000_000, 2_000_000, 6_000_000), Range(1, 2000, 3), Range(1, 60_000, 3), "3 attempts", 3
        ),
        TaskEstimate("demo/b", "own", "coding", Range(0, 0, 0), Range(0, 0, 0), Range(0, 0, 0), "assumed", priced=False),
    ),
    cost_usd_micros=Range(1_000_000, 2_000_000, 6_000_000),
    tokens=Range(100, 2000, 9000),
    duration_ms=Range(1000, 60_000, 90_000),
    agents=4,
    samples=1,
    prices_made="2026-11-21",
)


def test_estimate_shows_a_range_and_where_it_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    wiring = scripted(estimate=ESTIMATE)
    found = call(wiring, "cost", "estimate", str(file), "--agents", "4")
    assert wiring.fake.asked("estimate") == [EstimateParams(PLAN, str(file), str(tmp_path), 4)]
    _, a, b, total = found.stdout.splitlines()
    assert a.split() == ["a", "$1.00", "$2.00", "$6.00", "2000", "1m", "00s", "3", "attempts"]
    assert b.endswith("assumed (its model has no known price)")
    assert total.split()[:4] == ["total", "$1.00", "$2.00", "$6.00"]
    assert "with 4 agents; 1 of 2 tasks from the past" in found.stderr


def test_a_plan_is_estimated_before_there_is_any_orchestra(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    wiring = scripted(estimate=ESTIMATE)
    wiring.running = False
    assert call(wiring, "cost", "estimate", str(file), "--json").exit_code == 0
    assert wiring.log[-1].startswith("blank ")


def test_a_plan_that_cannot_be_run_is_not_estimated(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("name: demo\ntasks:\n  - {id: a, needs: [b], run: 'true'}\n")
    wiring = scripted()
    assert call(wiring, "cost", "estimate", str(file)).exit_code == 2
    assert wiring.fake.calls == []


def day(spent: int, *, now_ms: int, live: bool = True) -> CostReply:
    return make_cost("day", make_cost_row("2023-11-13", 5_000_000), make_cost_row(DAY, spent), now_ms=now_ms, live=live)


def test_watch_shows_the_rate_and_ends_with_the_orchestra() -> None:
    paused: list[float] = []

    async def pause(seconds: float) -> None:
        paused.append(seconds)

    tasks = make_cost("task", make_cost_row("demo/a", 700_000))
    looks = [
        day(1_000_000, now_ms=MOMENT_MS),
        tasks,
        day(2_000_000, now_ms=MOMENT_MS + HOUR_MS // 4),
        tasks,
        CoordinatorUnreachable("gone"),
    ]
    wiring = scripted(cost=looks, budgets=BUDGETS)
    found = call(wiring, "cost", "watch", "--interval", "5", session=Session(wiring, pause))
    first, second = found.stdout.splitlines()
    assert "today $1.00, - an hour, day 2023-11-14 at 90%" in first
    assert "today $2.00, $4.00 an hour" in second
    assert second.endswith("demo/a $0.70")
    assert found.stderr == "the orchestra has ended: nothing more is spent\n"
    assert paused == [5.0, 5.0]
    assert wiring.fake.asked("cost")[:2] == [CostParams("day", compare=False), CostParams("task", limit=10, compare=False)]


def test_watch_after_the_end_looks_once() -> None:
    wiring = scripted(cost=[day(1_000_000, now_ms=MOMENT_MS, live=False), make_cost()])
    told = json.loads(call(wiring, "cost", "watch", "--json").stdout)
    assert (told["today_usd_micros"], told["all_usd_micros"], told["rate_usd_micros_per_hour"]) == (1_000_000, 6_000_000, None)


def test_watch_where_nothing_runs_says_so() -> None:
    wiring = scripted()
    wiring.running = False
    assert call(wiring, "cost", "watch").exit_code != 0


def test_the_rate_is_that_of_the_last_minutes() -> None:
    pace = Pace()
    assert pace.per_hour(0, 500) is None
    assert pace.per_hour(HOUR_MS // 60, 600) == 6_000
    assert pace.per_hour(HOUR_MS // 60 + PACE_MS, 600) == 0, "the first look is too long ago"
    assert pace.per_hour(HOUR_MS // 60 + PACE_MS + 1, 0) == 0, "books that were begun anew are no negative spending"


def test_a_bar_is_as_full_as_the_budget() -> None:
    assert [bar(used, 10, 10).count("━") for used in (0, 1, 9, 10, 11)] == [0, 1, 9, 10, 10]
    assert bar(0, 0, 4) == "━━━━"


@pytest.mark.parametrize("width,height", [(120, 30), (40, 6), (10, 1), (80, 0)])
def test_the_view_fits_the_terminal(width: int, height: int) -> None:
    rows = tuple(make_cost_row(f"demo/{'x' * 60}{number}") for number in range(20))
    look = Look(MOMENT_MS, "gateway", "settled\x1b[2J", 1, 2, 3, 4, BUDGETS.budgets, rows)
    lines = lines_of(look, width, height)
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)


def test_the_view_shows_budgets_the_fullest_first_and_the_dearest_tasks() -> None:
    look = Look(MOMENT_MS, "gateway", "settled", 9_000_000, 9_500_000, 1_000_000, 4, BUDGETS.budgets, (make_cost_row("demo/a"),))
    lines = lines_of(look, 200, 20)
    assert lines[0] == "today $9.00   $1.00 an hour   4 requests   in all $9.50"
    assert lines[2].startswith(f"day {DAY}")
    assert lines[2].endswith("90%  $9.00 of $10.00, $0.50 reserved")
    assert lines[3].startswith("task demo/a")
    assert lines[4].split() == ["demo/a", "$1.50", "10", "requests"]


def test_the_last_look_stays_on_the_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=12, color_system=None)
    look = Look(MOMENT_MS, "gateway", "settled", 9_000_000, 9_500_000, None, 4, BUDGETS.budgets, (make_cost_row("demo/a"),))
    with LiveScreen(console) as screen:
        screen.draw(look)
        screen.draw(Look(MOMENT_MS, "gateway", "settled", 9_100_000, 9_600_000, 42, 5, (), ()))
    assert "today $9.00   - an hour" in out.getvalue()
    assert "today $9.10   $0.0000 an hour   5 requests" in out.getvalue().rpartition("demo/a")[2]
