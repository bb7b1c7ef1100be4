"""What the gateway's answers mean for who may start, and for whom a failure is to blame on."""

from __future__ import annotations

from typing import Any

import pytest

from orchestra.core.model import OutcomeKind, Payload, TaskSpec
from orchestra.ids import AttemptId, PlanId, TaskId
from orchestra.metering.outlook import ALARM_MS, EXCUSED_MS, PROBE_MS, STEPS, Outlook

SPEC = TaskSpec(TaskId("p/a"), "", Payload("analysis", "x"), kind="claude", plan=PlanId("p"))
ATTEMPT = AttemptId(TaskId("p/a"), 1)


def outlook(on_spent: str = "pause") -> Outlook:
    return Outlook({"claude": ("anthropic",), "codex": ("openai",)}, {"main": "anthropic", "other": "openai"}, on_spent)


def health(*, down: tuple[str, ...] = (), parked: int = 0, is_open: int = 0) -> dict[str, Any]:
    return {"upstreams_down": list(down), "accounts": {"main.a": {"parked_ms": parked}, "other.a": {"parked_ms": 0}}, "open": is_open}


def excused(made: Outlook, reason: str, now_ms: int) -> str:
    """Why the failure is not the task's, or nothing."""
    found = made.ruling(SPEC, ATTEMPT, reason, now_ms)
    return found[1] if found is not None and found[0] is OutcomeKind.DEFERRED else ""


def lane(percent: int, waiting: int) -> dict[str, Any]:
    limits = [{"name": "requests", "limit": 100, "used": percent, "used_percent": percent}]
    return {"upstream": "main", "account": "a", "model_class": "opus-4", "waiting": waiting, "limits": limits}


def look(
    made: Outlook, now_ms: int = 0, *, lanes: tuple[dict[str, Any], ...] = (), budgets: tuple[Any, ...] = (), **state: Any
) -> list[Any]:
    rows = [{"scope": scope, "name": name, "budget_usd_micros": micros} for scope, name, micros in budgets]
    return made.look(health(**state), {"lanes": list(lanes)}, {"budgets": rows}, now_ms)


def spent(scope: str, name: str, budget: int = 5, seq: int = 9) -> dict[str, Any]:
    fields = {"attempt": str(ATTEMPT), "scope": scope, "name": name, "budget_usd_micros": budget, "settled_usd_micros": budget}
    return {"seq": seq, "ms": 1, "kind": "budget_spent", "fields": fields}


def test_nothing_is_held_back_where_all_is_well() -> None:
    made = outlook()
    look(made, lanes=(lane(50, 3),))
    assert made.gate().closed == {}
    assert made.use["anthropic"].rpm == 50
    assert made.use["anthropic"].rpm_limit == 100


@pytest.mark.parametrize(
    "state, words",
    [
        ({"parked": 90_000}, "main.a is used up for 1m 30s"),
        ({"down": ("main",)}, "main fails"),
        ({"lanes": (lane(96, 1),)}, "96 % of the requests of main.a"),
    ],
)
def test_a_kind_whose_api_serves_nobody_is_not_started_and_others_are(state: dict[str, Any], words: str) -> None:
    made = outlook()
    look(made, **state)
    assert words in made.gate().closed["claude"]
    assert "codex" not in made.gate().closed


def test_a_full_limit_that_nobody_waits_for_holds_nobody() -> None:
    made = outlook()
    look(made, lanes=(lane(100, 0),))
    assert made.gate().closed == {}


def test_after_a_pause_attempts_are_let_in_by_and_by() -> None:
    made = outlook()
    look(made, parked=1)
    seen = []
    for _ in range(STEPS + 1):
        look(made)
        seen.append(made.gate().room.get("claude"))
    assert seen == [1, 2, 4, 8, 16, 32, 64, 128, None]


def test_an_api_that_fails_is_tried_with_one_attempt_now_and_then() -> None:
    made = outlook()
    look(made, 0, down=("main",))
    look(made, PROBE_MS - 1, down=("main",))
    assert "claude" in made.gate().closed
    look(made, PROBE_MS, down=("main",))
    assert made.gate().closed == {}
    assert made.gate().room == {"claude": 1}
    look(made, PROBE_MS + 1, down=("main",), is_open=1)
    assert "claude" in made.gate().closed
    look(made, 3 * PROBE_MS, down=("main",), is_open=1)
    assert "claude" in made.gate().closed, "the one that tries is still at it"


def test_while_the_gateway_is_away_nothing_starts_and_nothing_fails_for_it() -> None:
    made = outlook()
    look(made)
    assert excused(made, "network: refused", 10) == ""
    made.away("the gateway is being started", 20)
    assert made.gate().closed == {"claude": "the gateway is being started", "codex": "the gateway is being started"}
    assert "being started" in excused(made, "network: refused", 21)
    look(made, 30)
    assert excused(made, "network: refused", 30 + EXCUSED_MS - 11) != ""
    assert excused(made, "network: refused", 20 + EXCUSED_MS + 1) == ""


@pytest.mark.parametrize("reason", ["crashed: without a word", "said something about network:", "auth: no key"])
def test_other_failures_are_the_tasks_own(reason: str) -> None:
    made = outlook()
    look(made, parked=1)
    assert excused(made, reason, 0) == ""


def test_a_spent_day_holds_all_until_it_has_another_budget() -> None:
    made = outlook()
    look(made)
    told = made.hear(spent("day", "2026-01-31"), 0)
    assert told is not None
    assert made.hear(spent("day", "2026-01-31", seq=10), 0) is None, "once is enough"
    look(made, budgets=(("day", "2026-01-31", 5),))
    assert made.gate().closed.keys() == {"claude", "codex"}
    assert not made.gate().critical_pass
    assert excused(made, "budget: spent", 0) == "the budget of the day is spent"
    look(made, budgets=(("day", "2026-01-31", 50),))
    assert made.gate().closed == {}


def test_parking_lets_critical_tasks_go_on() -> None:
    made = outlook("park")
    look(made)
    made.hear(spent("day", "2026-01-31"), 0)
    assert made.gate().critical_pass


def test_a_spent_plan_holds_that_plan() -> None:
    made = outlook()
    look(made)
    made.hear(spent("plan", "p"), 0)
    assert made.gate().plans.keys() == {"p"}
    assert made.gate().closed == {}


def test_a_task_is_to_blame_for_its_own_budget() -> None:
    made = outlook()
    look(made)
    made.hear(spent("task", "p/a"), 0)
    found = made.ruling(SPEC, ATTEMPT, "quota: as another program calls it", 0)
    assert found == (OutcomeKind.REFUSED, "budget: the task's budget of $0.0000 is spent")


def test_a_limit_that_stays_near_is_an_alarm_and_one_that_calms_is_not() -> None:
    made = outlook()
    fields = {"upstream": "main", "account": "a", "model_class": "opus-4", "limit": "requests", "used_percent": 71, "foreign": 0}
    made.hear({"seq": 1, "ms": 0, "kind": "limit_warning", "fields": fields}, 0)
    assert look(made, ALARM_MS) == []
    assert [fact.kind for fact in look(made, ALARM_MS + 1)] == ["limit_alarm"]
    assert look(made, ALARM_MS + 2) == []
    made.hear({"seq": 2, "ms": 0, "kind": "limit_warning", "fields": fields | {"limit": "tokens"}}, 0)
    made.hear({"seq": 3, "ms": 0, "kind": "limit_calm", "fields": fields | {"limit": "tokens"}}, 1)
    assert look(made, ALARM_MS + 3) == []
