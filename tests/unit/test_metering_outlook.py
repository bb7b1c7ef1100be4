"""What the gateway's answers mean for who may start, and for whom a failure is to blame on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orchestra.core.model import OutcomeKind, Payload, TaskSpec
from orchestra.ids import AttemptId, PlanId, TaskId
from orchestra.metering.alarms import ALARM_MS
from orchestra.metering.outlook import EXCUSED_MS, PROBE_MS, STEPS, Outlook
from orchestra.metering.standing import QUIET_MS

SPEC = TaskSpec(TaskId("p/a"), "", Payload("analysis", "x"), kind="claude", plan=PlanId("p"))
OPUS = msgspec.structs.replace(SPEC, requirements='{"model":"claude-opus-4-5"}')
HAIKU = msgspec.structs.replace(SPEC, requirements='{"model":"claude-haiku-4-5"}')
LIMITED = msgspec.structs.replace(SPEC, cost_usd_micros_max=5)
ATTEMPT = AttemptId(TaskId("p/a"), 1)


def outlook(on_spent: str = "pause", **more: Any) -> Outlook:
    return Outlook({"claude": ("anthropic",), "codex": ("openai",)}, {"main": "anthropic", "other": "openai"}, on_spent, **more)


def health(*, down: tuple[str, ...] = (), parked: int = 0, is_open: int = 0, second: int | None = None) -> dict[str, Any]:
    accounts = {"main.a": {"parked_ms": parked}, "other.a": {"parked_ms": 0}} | (
        {} if second is None else {"main.b": {"parked_ms": second}}
    )
    return {"upstreams_down": list(down), "accounts": accounts, "open": is_open}


def excused(made: Outlook, reason: str, now_ms: int) -> str:
    """Why the failure is not the task's, or nothing."""
    found = made.ruling(SPEC, ATTEMPT, reason, now_ms)
    return found[1] if found is not None and found[0] is OutcomeKind.DEFERRED else ""


def lane(
    percent: int, waiting: int, *, model_class: str = "opus-4", account: str = "a", upstream: str = "main", **more: Any
) -> dict[str, Any]:
    limits = [{"name": "requests", "limit": 100, "used": percent, "used_percent": percent}]
    names = {"upstream": upstream, "account": account, "model_class": model_class}
    return {**names, "waiting": waiting, "in_flight": 0, "closed_ms": 0, "refusals": 0, "parked_ms": 0, "limits": limits, **more}


def row(scope: str, name: str, budget: int, settled: int) -> dict[str, Any]:
    return {"scope": scope, "name": name, "budget_usd_micros": budget, "settled_usd_micros": settled, "reserved_usd_micros": 0}


def look(
    made: Outlook,
    now_ms: int = 0,
    *,
    lanes: tuple[dict[str, Any], ...] = (),
    budgets: tuple[dict[str, Any], ...] = (),
    running: tuple[TaskSpec, ...] = (),
    **state: Any,
) -> list[Any]:
    return made.look(health(**state), {"lanes": list(lanes)}, {"budgets": list(budgets)}, now_ms, running)


def spent(scope: str, name: str, budget: int = 5, seq: int = 9, needed: int = 1) -> dict[str, Any]:
    figures = {"budget_usd_micros": budget, "settled_usd_micros": budget, "needed_usd_micros": needed}
    return {"seq": seq, "ms": 1, "kind": "budget_spent", "fields": {"attempt": str(ATTEMPT), "scope": scope, "name": name, **figures}}


def refusal(made: Outlook, spec: TaskSpec, now_ms: int = 10**9) -> str:
    """Why the task is not started at all."""
    gate = made.gate(now_ms)
    keys = (spec.kind, *gate.keys_of(spec))
    return gate.day or next((gate.closed[key] for key in keys if key in gate.closed), "")


def room(made: Outlook, spec: TaskSpec, now_ms: int) -> int | None:
    gate = made.gate(now_ms)
    return min((gate.room[key] for key in (spec.kind, *gate.keys_of(spec)) if key in gate.room), default=None)


def test_nothing_is_held_back_where_all_is_well() -> None:
    made = outlook()
    look(made, lanes=(lane(50, 3),))
    assert made.gate(0).closed == {}
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
    assert words in refusal(made, SPEC)
    assert words in refusal(made, OPUS)
    assert refusal(made, msgspec.structs.replace(SPEC, kind="codex")) == ""


def test_a_full_limit_that_nobody_waits_for_holds_nobody() -> None:
    made = outlook()
    look(made, lanes=(lane(100, 0),))
    assert made.gate(0).closed == {}


def test_a_class_that_is_full_holds_only_those_that_may_need_it() -> None:
    made = outlook()
    look(made, lanes=(lane(99, 3), lane(0, 0, model_class="haiku-4")))
    assert "99 %" in refusal(made, OPUS)
    assert refusal(made, HAIKU) == ""
    assert "99 %" in refusal(made, SPEC), "its program chooses the model, and nobody knows which"


def test_the_settings_for_a_kind_and_the_gateways_file_say_which_class_a_task_is_of() -> None:
    made = outlook(models={"claude": "tuned-1"}, classes={"anthropic": {"tuned-.*": "tuned"}})
    look(made, lanes=(lane(99, 3), lane(0, 0, model_class="tuned")))
    assert refusal(made, SPEC) == ""
    look(made, lanes=(lane(0, 0), lane(99, 3, model_class="tuned")))
    assert refusal(made, SPEC) != ""


@pytest.mark.parametrize("model,held", [("opus", True), ("haiku", False), ("anthropic/claude-haiku-4-5", False), ("opusplan", True)])
def test_models_by_the_names_that_programs_have_for_them(model: str, held: bool) -> None:
    made = outlook()
    look(made, lanes=(lane(99, 3), lane(0, 0, model_class="haiku-4")))
    look(made, lanes=(lane(99, 3), lane(0, 0, model_class="haiku-4")))
    assert bool(refusal(made, msgspec.structs.replace(SPEC, requirements=f'{{"model":"{model}"}}'))) is held


def test_a_class_is_closed_only_where_every_account_is() -> None:
    made = outlook()
    look(made, second=0, lanes=(lane(99, 3),))
    assert refusal(made, OPUS) == "", "nobody has used the other account for it yet"
    look(made, second=0, lanes=(lane(99, 3), lane(10, 0, account="b")))
    assert refusal(made, OPUS) == ""
    look(made, second=0, lanes=(lane(99, 3), lane(99, 1, account="b")))
    assert refusal(made, OPUS) != ""
    look(made, second=60_000, lanes=(lane(99, 3), lane(10, 0, account="b")))
    assert refusal(made, OPUS) != "", "the one with room is used up"


def test_names_with_dots_and_logins_that_are_passed_through_are_seen_to_be_parked() -> None:
    made = Outlook({"claude": ("anthropic",)}, {"api": "anthropic", "api.eu": "anthropic"}, "pause")
    answer = {"upstreams_down": [], "accounts": {"api.eu.a": {"parked_ms": 90_000}, "api.b": {"parked_ms": 60_000}}, "open": 0}
    made.look(answer, {"lanes": []}, {"budgets": []}, 0)
    assert "api.b is used up for 1m" in refusal(made, SPEC)
    made = outlook()
    made.look(
        {"upstreams_down": [], "accounts": {}, "open": 0}, {"lanes": [lane(0, 0, account="login-x", parked_ms=5_000)]}, {"budgets": []}, 0
    )
    assert "main.login-x is used up" in refusal(made, SPEC)


def test_counting_tokens_is_no_class_of_models() -> None:
    made = outlook()
    look(made, lanes=(lane(99, 3, model_class="count_tokens"),))
    assert refusal(made, SPEC) == ""


def test_after_a_pause_attempts_are_let_in_by_and_by_however_often_it_is_looked() -> None:
    made = outlook()
    look(made, parked=1)
    look(made, 1_000)
    seen = []
    for second in range(STEPS + 1):
        rounds = set()
        for part in (0, 250, 999):
            now_ms = 1_000 + 1_000 * second + part
            look(made, now_ms)
            seen.append(room(made, SPEC, now_ms))
            rounds.add(made.gate(now_ms).rounds.get("claude"))
        assert len(rounds) == 1, "one round a second"
    assert seen == [each for each in (1, 2, 4, 8, 16, 32, 64, 128, None) for _ in range(3)]


def test_a_refused_pace_is_a_pause_until_the_lane_serves_again() -> None:
    made = outlook()
    look(made, lanes=(lane(0, 0),))
    made.hear({"seq": 1, "ms": 0, "kind": "limited", "fields": {"upstream": "main", "account": "a", "model_class": "opus-4"}}, 10)
    assert excused(made, "rate-limited: no", 11), "also before the next look"
    look(made, 20, lanes=(lane(0, 2, closed_ms=20_000, refusals=1),))
    assert "refuses main.a (opus-4) for its pace, and 2 requests wait" in refusal(made, OPUS)
    assert refusal(made, HAIKU) == ""
    assert "for its pace" in excused(made, "rate-limited: no", 21)
    look(made, 20_020, lanes=(lane(0, 2, refusals=1),))
    assert refusal(made, OPUS), "one of them asks; the answer is not there yet"
    look(made, 21_000, lanes=(lane(0, 2),))
    assert (refusal(made, OPUS), room(made, OPUS, 21_000)) == ("", 1)
    assert excused(made, "rate-limited: no", 20_020 + EXCUSED_MS)
    look(made, 20_021 + EXCUSED_MS, lanes=(lane(0, 0),))
    assert not excused(made, "rate-limited: no", 20_021 + EXCUSED_MS)


def test_a_refused_pace_that_nobody_asks_after_any_more_is_tried_again() -> None:
    made = outlook()
    look(made, 0, lanes=(lane(0, 0, closed_ms=500, refusals=3),))
    look(made, QUIET_MS, lanes=(lane(0, 0, refusals=3),))
    assert refusal(made, OPUS)
    look(made, QUIET_MS + 1, lanes=(lane(0, 0, refusals=3),))
    assert refusal(made, OPUS) == ""


def test_so_many_are_started_as_the_limit_bears_by_what_one_takes() -> None:
    made = outlook()
    for second in range(59):
        look(made, second * 1_000, lanes=(lane(40, 0),), running=(OPUS,) * 4)
    assert room(made, OPUS, 58_000) is None, "not before a minute was seen"
    for second in range(59, 400):
        look(made, second * 1_000, lanes=(lane(40, 0),), running=(OPUS,) * 4)
    assert room(made, OPUS, 400_000) == 5, "ten each: 95 of a hundred are nine"
    assert room(made, HAIKU, 400_000) is None
    look(made, 400_001, lanes=(lane(40, 0),), running=(OPUS,) * 9)
    assert "an attempt takes about 10 requests a minute of 100 for opus-4, and 9 are at work" in refusal(made, OPUS, 400_001)
    look(made, 400_002, lanes=(lane(40, 0),))
    assert room(made, OPUS, 400_002) == 9
    look(made, 400_003, lanes=(lane(40, 0),), second=0, running=(OPUS,) * 9)
    assert refusal(made, OPUS, 400_003) == "", "another account is there for it"


def test_what_was_used_long_ago_holds_nobody() -> None:
    made = outlook()
    for minute in range(3_000):
        look(made, minute * 15_000, lanes=(lane(90 if minute < 100 else 0, 0),), running=(OPUS,))
    assert (refusal(made, OPUS, 10**9), room(made, OPUS, 10**9)) == ("", None)


def test_one_is_started_however_much_it_takes() -> None:
    made = outlook()
    for second in range(400):
        look(made, second * 1_000, lanes=(lane(120, 0),), running=(OPUS,))
    assert refusal(made, OPUS, 399_000)
    look(made, 400_000, lanes=(lane(120, 0),))
    assert (refusal(made, OPUS, 400_000), room(made, OPUS, 400_000)) == ("", 1)


def test_an_api_that_fails_is_tried_with_one_attempt_now_and_then() -> None:
    made = outlook()
    look(made, 0, down=("main",))
    look(made, PROBE_MS - 1, down=("main",))
    assert "claude" in made.gate(0).closed
    look(made, PROBE_MS, down=("main",))
    assert made.gate(0).closed == {}
    assert made.gate(0).room == {"claude": 1}
    assert made.gate(0).rounds == {"claude": PROBE_MS}, "each trial is a round of its own"
    look(made, PROBE_MS + 1, down=("main",), is_open=1)
    assert "claude" in made.gate(0).closed
    look(made, 3 * PROBE_MS, down=("main",), is_open=1)
    assert "claude" in made.gate(0).closed, "the one that tries is still at it"


def test_while_the_gateway_is_away_nothing_starts_and_nothing_fails_for_it() -> None:
    made = outlook()
    look(made)
    assert excused(made, "network: refused", 10) == ""
    made.away("the gateway is being started", 20)
    assert made.gate(0).closed == {"claude": "the gateway is being started", "codex": "the gateway is being started"}
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
    assert made.spent == [("day", "2026-01-31")]
    look(made, budgets=(row("day", "2026-01-31", 5, 5),))
    assert "orchestra cost budget day --usd" in refusal(made, SPEC)
    assert not made.gate(0).critical_pass
    assert excused(made, "budget: spent", 0) == "the budget of the day is spent"
    look(made, budgets=(row("day", "2026-01-31", 50, 5),))
    assert refusal(made, SPEC) == ""
    assert made.spent == []


def test_a_budget_is_spent_no_longer_once_it_would_bear_what_was_refused() -> None:
    made = outlook()
    look(made)
    made.hear(spent("plan", "p", 100, needed=40), 0)
    look(made, budgets=(row("plan", "p", 100, 61),))
    assert made.gate(0).plans.keys() == {"p"}
    look(made, budgets=(row("plan", "p", 100, 60),))
    assert made.gate(0).plans == {}


def test_a_day_that_is_over_is_spent_no_longer() -> None:
    made = outlook()
    look(made)
    made.hear(spent("day", "2026-01-31"), 0)
    look(made)
    assert refusal(made, SPEC) == ""


def test_what_was_spent_before_anybody_listened_is_known() -> None:
    made = outlook()
    look(made, budgets=(row("plan", "p", 5, 5), row("task", "p/b", 5, 4)))
    assert made.gate(0).plans.keys() == {"p"}
    assert made.gate(0).tasks == {}


def test_parking_lets_critical_tasks_go_on() -> None:
    made = outlook("park")
    look(made)
    made.hear(spent("day", "2026-01-31"), 0)
    assert made.gate(0).critical_pass


def test_a_spent_plan_holds_that_plan() -> None:
    made = outlook()
    look(made)
    made.hear(spent("plan", "p"), 0)
    assert made.gate(0).plans.keys() == {"p"}
    assert made.gate(0).closed == {}


@pytest.mark.parametrize("spec,on_spent", [(LIMITED, "pause"), (LIMITED, "park"), (SPEC, "stop")])
def test_what_a_task_may_cost_by_its_own_word_is_its_end(spec: TaskSpec, on_spent: str) -> None:
    made = outlook(on_spent)
    look(made)
    made.hear(spent("task", "p/a"), 0)
    found = made.ruling(spec, ATTEMPT, "quota: as another program calls it", 0)
    assert found == (OutcomeKind.REFUSED, "budget: the task's budget of $0.0000 is spent")


def test_a_task_waits_where_its_budget_is_the_settings() -> None:
    made = outlook()
    look(made)
    made.hear(spent("task", "p/a", 10_000_000), 0)
    words = "its budget of $10.00 is spent; `orchestra cost budget task p/a --usd AMOUNT` raises it"
    assert excused(made, "budget: spent", 0) == words
    assert made.gate(0).tasks == {"p/a": words}
    look(made, budgets=(row("task", "p/a", 10_000_000, 10_000_000),))
    assert made.gate(0).tasks == {"p/a": words}
    look(made, budgets=(row("task", "p/a", 20_000_000, 10_000_000),))
    assert made.gate(0).tasks == {}


def test_an_agents_budget_is_not_its_tasks_fault() -> None:
    made = outlook("stop")
    look(made)
    made.hear(spent("agent", "3"), 0)
    assert excused(made, "budget: spent", 0) == "the budget of agent 3 is spent"
    assert made.gate(0).agents.keys() == {"3"}


def test_who_waited_for_a_budget_in_vain_is_excused() -> None:
    made = outlook()
    look(made)
    assert (
        made.hear({"seq": 1, "ms": 0, "kind": "budget_busy", "fields": {"attempt": str(ATTEMPT), "scope": "day", "name": "x"}}, 0) is None
    )
    assert excused(made, "rate-limited: others hold it", 0) == "requests on their way held what was left of the budget of the day"
    assert made.spent == []


def test_what_is_over_is_asked_after_no_more() -> None:
    made = outlook()
    look(made)
    made.hear(spent("task", "p/a"), 0)
    made.forget_budget("task", "p/a")
    assert made.spent == []


# --- alarms ----------------------------------------------------------------------------------------------------------


def test_a_limit_that_stays_near_is_an_alarm_and_one_that_calms_is_not() -> None:
    made = outlook()
    assert look(made, 0, lanes=(lane(71, 0),)) == []
    assert look(made, ALARM_MS, lanes=(lane(71, 0),)) == []
    assert [(fact.kind, fact.facts["limit"]) for fact in look(made, ALARM_MS + 1, lanes=(lane(71, 0),))] == [
        ("limit_alarm", "main.a opus-4 requests")
    ]
    assert look(made, ALARM_MS + 2, lanes=(lane(71, 0),)) == []
    assert look(made, ALARM_MS + 3, lanes=(lane(60, 0),)) == []
    assert look(made, 2 * ALARM_MS + 3, lanes=(lane(71, 0),)) == [], "it begins anew"


def test_a_near_limit_that_nobody_uses_any_more_is_no_alarm() -> None:
    made = outlook()
    fields = {"upstream": "main", "account": "a", "model_class": "opus-4", "limit": "requests", "used_percent": 75, "foreign": 0}
    assert made.hear({"seq": 1, "ms": 0, "kind": "limit_warning", "fields": fields}, 0) is not None
    look(made, 0, lanes=(lane(75, 0),))
    assert look(made, 61_000, lanes=(lane(0, 0),)) == []
    assert look(made, ALARM_MS + 1, lanes=(lane(0, 0),)) == []


def test_the_window_of_a_subscription_is_an_alarm_until_the_gateway_says_it_is_calm() -> None:
    made = outlook()
    fields = {"upstream": "main", "account": "a", "model_class": "opus-4", "limit": "window_5h", "used_percent": 75, "foreign": 0}
    for kind in ("limit_warning", "limit_calm", "limit_warning"):
        made.hear({"seq": 1, "ms": 0, "kind": kind, "fields": fields}, 0)
    assert look(made, 0) == []
    assert [fact.facts["limit"] for fact in look(made, ALARM_MS + 1)] == ["main.a opus-4 window_5h"]


def test_a_pace_that_is_refused_for_long_is_an_alarm_and_its_end_is_told() -> None:
    made = outlook()
    stormy = lane(0, 1, closed_ms=5_000, refusals=9)
    assert look(made, 0, lanes=(stormy,)) == []
    (alarm,) = look(made, ALARM_MS + 1, lanes=(stormy,))
    assert (alarm.kind, alarm.facts["limit"]) == ("limit_alarm", "main.a opus-4 pace")
    (calm,) = look(made, ALARM_MS + 2, lanes=(lane(0, 0),))
    assert (calm.kind, calm.facts["limit"]) == ("limit_calm", "main.a opus-4 pace")


def test_an_upstream_that_is_down_is_told_when_it_lasts_and_only_then_that_it_is_back() -> None:
    made = outlook()
    notice = {"seq": 1, "ms": 0, "kind": "upstream_down", "fields": {"upstream": "main"}}
    assert made.hear(notice, 0) is None
    assert look(made, 0, down=("main",)) == []
    assert look(made, ALARM_MS) == [], "it was back in time"
    assert look(made, ALARM_MS + 1, down=("main",)) == []
    assert [(fact.kind, fact.facts) for fact in look(made, 2 * ALARM_MS + 2, down=("main",))] == [
        ("upstream_down", {"upstream": "main", "minutes": 5})
    ]
    assert [fact.kind for fact in look(made, 2 * ALARM_MS + 3)] == ["upstream_back"]
