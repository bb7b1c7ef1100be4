"""What every kind shares about ends. Above all: every end has a verdict, whatever an agent printed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.agents import rehearsal, shell
from orchestra.agents.adapter import Adapter, Exit, Verdict
from orchestra.agents.ending import SUMMARY_CHARACTERS_MAX, exit_in_words, imposed, metrics_of, outcome
from orchestra.core.model import CheckResult, Outcome, OutcomeKind, Payload, TaskSpec, Usage
from orchestra.ids import TaskId

ADAPTERS: tuple[Adapter, ...] = (shell.ADAPTER, rehearsal.ADAPTER)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    ["type", "subtype", "is_error", "result", "session_id", "usage", "total_cost_usd", "num_turns", "output_files", "progress", "question"]
)
words = st.sampled_from(["system", "result", "init", "progress", "usage", "question", "answer", "assistant"])
lines = st.dictionaries(names, words | json_values, max_size=8)
ends = st.builds(
    Exit,
    reason=st.sampled_from(["exit", "timeout", "stopped", "memory", "spawn"]) | st.text(max_size=8),
    code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(0, 64),
    duration_ms=st.integers(0, 2**40),
    last=st.dictionaries(st.sampled_from(["system", "result"]), lines, max_size=2),
    tail=st.lists(st.text(max_size=30), max_size=4).map(tuple),
    rss_bytes_max=st.integers(0, 2**50),
)
specs = st.builds(
    lambda type_, language: TaskSpec(TaskId("t"), "d", Payload(type_, "x", language)),
    st.sampled_from(["command", "code", "analysis"]) | st.text(max_size=5),
    st.sampled_from(["python", "bash", ""]) | st.text(max_size=5),
)


@given(spec=specs, end=ends, which=st.sampled_from(ADAPTERS))
def test_every_end_has_a_verdict_and_an_outcome(spec: TaskSpec, end: Exit, which: Adapter) -> None:
    verdict = which.verdict(spec, end)
    assert verdict.reason or verdict.kind is OutcomeKind.DONE
    assert verdict.kind is not OutcomeKind.DONE or (end.code == 0 and not end.signal)
    assert min(*as_numbers(verdict.usage)) >= 0
    result = outcome(verdict, end, ())
    assert result.kind is verdict.kind
    assert len(result.summary) <= SUMMARY_CHARACTERS_MAX


def as_numbers(usage: Usage) -> tuple[int, ...]:
    return tuple(getattr(usage, name) for name in usage.__struct_fields__)


@given(line=lines, which=st.sampled_from(ADAPTERS))
def test_every_printed_line_has_a_signal_or_none(line: dict[str, Any], which: Adapter) -> None:
    signal = which.signal(line)
    assert signal is None or signal.progress is None or 0.0 <= signal.progress <= 1.0


@pytest.mark.parametrize("reason", ["exit", "", "something new"])
def test_what_nobody_imposed_is_left_to_the_kind(reason: str) -> None:
    assert imposed(Exit(reason, code=0)) is None


def test_imposed_ends_are_said_in_words() -> None:
    assert "4.2s" in (imposed(Exit("timeout", duration_ms=4200)) or Verdict(OutcomeKind.DONE)).reason
    assert "512 MB" in (imposed(Exit("memory", rss_bytes_max=512 * 2**20)) or Verdict(OutcomeKind.DONE)).reason
    assert "no such file" in (imposed(Exit("spawn", tail=("no such file",))) or Verdict(OutcomeKind.DONE)).reason
    assert imposed(Exit("spawn")) == Verdict(OutcomeKind.REFUSED, "could not be started: no reason given")


@pytest.mark.parametrize(
    "end,words",
    [
        (Exit("exit", code=3), "exit code 3"),
        (Exit("exit", code=3, tail=("  boom ",)), "exit code 3: boom"),
        (Exit("exit", code=3, tail=("boom", " ")), "exit code 3"),
        (Exit("exit", signal=15), "ended by SIGTERM"),
        (Exit("exit", signal=42), "ended by signal 42"),
    ],
)
def test_an_exit_in_words(end: Exit, words: str) -> None:
    assert exit_in_words(end) == words


def ended(verdict: Verdict, *checks: CheckResult) -> Outcome:
    return outcome(verdict, Exit("exit", code=0, tail=tuple(str(n) for n in range(30))), checks)


def test_done_needs_its_checks_to_pass() -> None:
    good, bad = CheckResult("lint", True), CheckResult("tests", False, tail=("x", "2 failed"))
    assert ended(Verdict(OutcomeKind.DONE), good).kind is OutcomeKind.DONE
    unverified = ended(Verdict(OutcomeKind.DONE), good, bad)
    assert unverified.kind is OutcomeKind.UNVERIFIED
    assert unverified.reason == "said done, but verification failed: tests: 2 failed"


def test_many_failed_checks_are_counted() -> None:
    checks = [CheckResult(f"c{n}", False) for n in range(5)]
    assert ended(Verdict(OutcomeKind.DONE), *checks).reason.endswith("c0, c1, c2 and 2 more")


def test_a_failure_stays_one_and_keeps_its_reason() -> None:
    failed = ended(Verdict(OutcomeKind.FAILED, "boom"), CheckResult("tests", False))
    assert (failed.kind, failed.reason) == (OutcomeKind.FAILED, "boom")


def test_the_last_lines_are_kept_only_where_it_did_not_end_well() -> None:
    assert ended(Verdict(OutcomeKind.DONE)).tail == ()
    assert ended(Verdict(OutcomeKind.FAILED, "x")).tail == tuple(str(n) for n in range(10, 30))


def test_figures_are_read_from_the_checks() -> None:
    checks = [
        CheckResult("unit", True, tail=("3 failed, 40 passed in 1s",)),
        CheckResult("more", True, tail=("2 passed", "TOTAL   100   13    87%")),
    ]
    assert metrics_of(checks) == {"tests_passed": 42.0, "tests_failed": 3.0, "coverage_percent": 87.0}
    assert metrics_of([CheckResult("linter", False, tail=("Found 4 errors.",))])["linter_errors"] == 4.0
    assert metrics_of([CheckResult("lint", True)]) == {"linter_errors": 0.0}
    assert metrics_of([CheckResult("tests", False, tail=("5 errors",))]) == {"tests_failed": 5.0}
