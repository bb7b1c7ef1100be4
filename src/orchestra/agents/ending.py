"""What every kind shares about ends: reasons the worker imposed, exit codes in words, and the outcome once the checks are known."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from orchestra.agents.adapter import Exit, Verdict
from orchestra.core.model import CheckResult, Outcome, OutcomeKind
from orchestra.quantity import show_ms

TAIL_LINES_MAX: Final = 20
SUMMARY_CHARACTERS_MAX: Final = 2000
SIGNALS: Final = {1: "SIGHUP", 2: "SIGINT", 6: "SIGABRT", 9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 15: "SIGTERM"}
COMMAND_NOT_FOUND: Final = (126, 127)
"""What a POSIX shell exits with when the command cannot be executed or found."""

_PASSING: Final = re.compile(r"\[Errno (?:11|12|23|24|28|35)\]")
"""No process, memory, descriptor or space to be had just then (35: no process, on macOS): says nothing about the program, so it is tried again."""


def imposed(end: Exit) -> Verdict | None:
    """Returns the verdict where not the agent decided the end: a limit, an order, or a program that cannot be started."""
    match end.reason:
        case "timeout":
            return Verdict(OutcomeKind.TIMEOUT, f"did not end within its time limit; stopped after {show_ms(end.duration_ms)}")
        case "memory":
            return Verdict(OutcomeKind.MEMORY, f"passed its memory limit at {end.rss_bytes_max // 2**20} MB")
        case "stopped":
            return Verdict(OutcomeKind.STOPPED, "stopped")
        case "fenced":
            return Verdict(OutcomeKind.STOPPED, "ended by its node, which had not heard of the coordinator for too long")
        case "spawn":
            said = end.tail[-1] if end.tail else "no reason given"
            passing = _PASSING.search(said) is not None
            return Verdict(OutcomeKind.FAILED if passing else OutcomeKind.REFUSED, f"could not be started: {said}")
        case _:
            return None


def exit_in_words(end: Exit) -> str:
    """Returns `exit code 3` or `ended by SIGKILL`, with the last line of output if there is one."""
    if end.signal:
        how = f"ended by {SIGNALS.get(end.signal, f'signal {end.signal}')}"
    else:
        how = f"exit code {end.code}"
    return f"{how}: {end.tail[-1].strip()[:200]}" if end.tail and end.tail[-1].strip() else how


def outcome(verdict: Verdict, end: Exit, checks: Sequence[CheckResult]) -> Outcome:
    """Returns the outcome of an attempt: the verdict, unless it was `done` and a check did not pass."""
    kind, reason = verdict.kind, verdict.reason
    if kind is OutcomeKind.DONE:
        reason = ""  # of interest only where it does not pass
    failed = [check for check in checks if not check.passed]
    if kind is OutcomeKind.DONE and failed:
        kind = OutcomeKind.UNVERIFIED
        names = ", ".join(check.name for check in failed[:3]) + (f" and {len(failed) - 3} more" if len(failed) > 3 else "")
        last = f": {failed[0].tail[-1].strip()[:160]}" if failed[0].tail else ""
        reason = f"said done, but verification failed: {names}{last}" + (f" ({verdict.reason})" if verdict.reason else "")
    return Outcome(
        kind=kind,
        reason=reason,
        code=end.code,
        signal=end.signal,
        duration_ms=end.duration_ms,
        checks=tuple(checks),
        tail=() if kind is OutcomeKind.DONE else end.tail[-TAIL_LINES_MAX:],
        usage=verdict.usage,
        rss_bytes_max=end.rss_bytes_max,
        cpu_ms=end.cpu_ms,
        session=verdict.session,
        summary=verdict.summary[:SUMMARY_CHARACTERS_MAX],
        output_files=verdict.output_files,
        metrics=metrics_of(checks),
    )


_PASSED: Final = re.compile(r"\b(\d{1,9}) passed\b")
_FAILED: Final = re.compile(r"\b(\d{1,9}) (?:failed|errors?)\b")
_COVERAGE: Final = re.compile(r"\b(?:TOTAL|coverage)\b.{0,120}?(?<![\d.])(\d{1,3}(?:\.\d{1,20})?)\s?%", re.IGNORECASE)
_LINT: Final = re.compile(r"\bFound (\d{1,9}) errors?\b")
_TESTS_TOLD: Final = re.compile(r"^tests: (\d{1,9}) passed, (\d{1,9}) failed$", re.MULTILINE)
_LINT_TOLD: Final = re.compile(r"^linter: (\d{1,9}) errors$", re.MULTILINE)
_COVERAGE_TOLD: Final = re.compile(r"^coverage: (\d{1,3}(?:\.\d{1,20})?)% \(wanted ", re.MULTILINE)


def metrics_of(checks: Sequence[CheckResult]) -> dict[str, float]:
    """Returns the figures of tests, coverage and linters, read from the checks' last lines.

    The fixed scripts say them in a form of their own. Where no check does, they are looked for in what test runners and linters print at their end.
    """
    found: dict[str, float] = {}
    texts = [(check, "\n".join(check.tail)) for check in checks]
    told = [_TESTS_TOLD.findall(text)[-1] for _, text in texts if _TESTS_TOLD.search(text)]
    if told:
        found["tests_passed"] = float(sum(int(passed) for passed, _ in told))
        found["tests_failed"] = float(sum(int(failed) for _, failed in told))
    else:
        # Coverage is measured by running the tests again: they count only where nothing else ran them.
        plain = [(check, text) for check, text in texts if not _COVERAGE_TOLD.search(text)]
        found |= _printed(plain) or _printed(texts)
    for check, text in texts:
        if lint := _LINT_TOLD.findall(text):
            found["linter_errors"] = found.get("linter_errors", 0.0) + float(lint[-1])
        elif "lint" in check.name.lower():
            found["linter_errors"] = found.get("linter_errors", 0.0) + float((_LINT.findall(text) or ["0" if check.passed else "1"])[-1])
        if coverage := _COVERAGE_TOLD.findall(text) or _COVERAGE.findall(text):
            found["coverage_percent"] = round(float(coverage[-1]), 2)
    return found


def _printed(texts: Sequence[tuple[CheckResult, str]]) -> dict[str, float]:
    """Returns the counts that test runners print; nothing where none does."""
    found: dict[str, float] = {}
    for check, text in texts:
        if "lint" in check.name.lower():
            continue
        if passed := _PASSED.findall(text):
            found["tests_passed"] = found.get("tests_passed", 0.0) + float(passed[-1])
            found["tests_failed"] = found.get("tests_failed", 0.0) + float((_FAILED.findall(text) or ["0"])[-1])
        elif failed := _FAILED.findall(text):
            found["tests_failed"] = found.get("tests_failed", 0.0) + float(failed[-1])
    return found
