"""`orchestra test`: a real orchestra and its gateway under a scripted API, as a person calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestra.errors import BadInput, NotFound, PlanInvalid
from orchestra.testing.drills.scenario import Fault, Figures, choose, judge, plain, read_scenarios, resized, shipped

FOUND = Figures(
    agents_wanted=50,
    agents_started=50,
    crashes=0,
    uptime_percent=99.5,
    tasks_submitted=100,
    tasks_completed=96,
    attempts=100,
    deferred=0,
    api_answers=400,
    api_errors=19,
    injected=30,
    recovery_seconds=299.0,
    memory_growth=1.0,
    seconds=1800.0,
)


def scenario(**fields: Any) -> str:
    usual = {
        "name": "Small",
        "agents": 2,
        "duration_seconds": 4,
        "turns": 2,
        "answer_seconds": 0.05,
        "success_criteria": ["Task completion rate > 95%"],
    }
    return json.dumps({"test_scenarios": [{**usual, **fields}]})


def drill(folder: Path, text: str, *arguments: str) -> tuple[int, Any]:
    (folder / "mine.yaml").write_text(text)
    words = [sys.executable, "-m", "orchestra", "--json", "test", str(folder / "mine.yaml"), "--folder", str(folder / "drill"), *arguments]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)["drills"][0]


def test_a_drill_in_which_all_requests_are_refused_for_a_while_is_passed(tmp_path: Path) -> None:
    faults = [{"from_seconds": 0, "for_seconds": 2, "retry_after_seconds": 1}]
    criteria = [
        "All agents start successfully",
        "Auto-recovery within 1 minutes",
        "Task completion rate > 95%",
        "API error rate < 5%",
        "Total crashes < 1",
    ]
    code, found = drill(tmp_path, scenario(inject_failures=faults, success_criteria=criteria))
    assert (code, [each["met"] for each in found["verdicts"]]) == (0, [True] * 5)
    figures = found["figures"]
    assert figures["injected"] > 0
    assert figures["tasks_completed"] == figures["tasks_submitted"] > 2
    assert (figures["api_answers"], figures["api_errors"]) == (2 * figures["tasks_completed"], 0)


def test_a_drill_under_errors_that_no_waiting_helps_against_is_not_passed(tmp_path: Path) -> None:
    text = scenario(inject_failures=[{"status": 400, "for_seconds": 4}], agents=1, success_criteria=["API error rate < 5%"])
    code, found = drill(tmp_path, text)
    assert (code, [each["met"] for each in found["verdicts"]]) == (1, [False])
    assert found["figures"]["api_errors"] > 0


def test_what_is_shipped_says_what_a_drill_has_to_prove() -> None:
    found = choose(shipped(), "API Rate Limit Stress")
    assert (found.agents, found.duration_seconds, found.success_criteria) == (
        50,
        1800,
        ("Auto-recovery within 5 minutes", "Task completion rate > 95%"),
    )
    assert found.faults() == (
        Fault(status=429, share_percent=30, from_seconds=60, for_seconds=60, retry_after_seconds=1),
        Fault(status=429, share_percent=100, from_seconds=120, for_seconds=60),
    )
    assert [plain(each.name) for each in shipped()] == ["phase-1-smoke-test", "api-rate-limit-stress", "24-hour-stability"]


def test_another_size_scales_the_faults_that_a_phrase_stands_for_and_refuses_to_cut_others() -> None:
    short = resized(choose(shipped(), "api-rate-limit-stress"), 5, 100)
    assert [(fault.from_seconds, fault.for_seconds) for fault in short.faults()] == [(10, 10), (20, 10)]
    (own,) = read_scenarios(scenario(inject_failures=[{"from_seconds": 2, "for_seconds": 2}]), "x.json")
    with pytest.raises(BadInput, match="faults go on until 4 s, but it lasts 3 s"):
        resized(own, None, 3)


@pytest.mark.parametrize(
    "phrase, met",
    [
        ("All agents start successfully", True),
        ("no crashes within 5 minutes", True),
        ("Total crashes < 10", True),
        ("Total crashes < 0", False),
        ("API error rate < 5%", True),
        ("API error rate < 4 %", False),
        ("Auto-recovery within 5 minutes", True),
        ("Auto-recovery within 4 minutes", False),
        ("Task completion rate > 95%", True),
        ("Task completion rate > 96%", False),
        ("Uptime > 99%", True),
        ("Uptime > 99.5%", False),
        ("Memory leak detection: none", True),
    ],
)
def test_criteria_are_judged_by_what_was_measured(phrase: str, met: bool) -> None:
    (one,) = read_scenarios(scenario(success_criteria=[phrase]), "x.json")
    assert [each.met for each in judge(one, FOUND)] == [met]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"success_criteria": ["It is fast"]}, r"x.yaml:1:\d+: 'It is fast' is not known"),
        ({"inject_failures": ["Pull the plug"]}, "'Pull the plug' is not known"),
        ({"agents": 0}, "agents"),
        ({"inject_failures": [{"status": 200}]}, "status"),
    ],
)
def test_a_scenario_that_cannot_be_played_is_refused_with_its_place(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanInvalid, match=words):
        read_scenarios(scenario(**fields), "x.yaml")


def test_a_scenario_that_is_not_there_names_the_near_one() -> None:
    with pytest.raises(NotFound) as refusal:
        choose(shipped(), "api-rate-limit-stres")
    assert "api-rate-limit-stress" in refusal.value.hint
