"""What the checks of a task came to as one HTML page that needs nothing else. No script runs in it; everything that was said is escaped and bounded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Final

import jinja2
from markupsafe import Markup

from orchestra.core.model import CheckResult
from orchestra.protocol.junit import TestCase, TestRun
from orchestra.quantity import show_ms
from orchestra.reporting.words import plain

ROWS_MAX: Final = 5000
FAILURES_MAX: Final = 200
NAME_CHARACTERS_MAX: Final = 300
FIGURES: Final = (
    ("tests_passed", "tests passed", "good"),
    ("tests_failed", "tests failed", "bad"),
    ("coverage_percent", "% coverage", ""),
    ("linter_errors", "linter errors", "bad"),
)

Values = dict[str, object]


def render_test_page(task: str, about: str, checks: Sequence[CheckResult], metrics: Mapping[str, float], run: TestRun | None) -> str:
    """Returns the page.

    Args:
        task: Its name.
        about: A sentence on which attempt this is.
        checks: What was run.
        metrics: The figures read from it.
        run: The single tests, where a check told them.
    """
    cases = () if run is None else run.cases
    bad = [case for case in cases if case.result in ("failed", "error")]
    style, template = _parts()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return template.render(
        task=plain(task),
        about=plain(about),
        figures=[
            (words, f"{metrics[name]:g}", tone if metrics[name] or tone == "" else "") for name, words, tone in FIGURES if name in metrics
        ],
        checks=[_check(check) for check in checks],
        failed=[_case(case) for case in bad[:FAILURES_MAX]],
        cases=[_case(case) for case in cases[:ROWS_MAX]],
        more=max(0, len(cases) - ROWS_MAX) + (0 if run is None else run.more),
        style=Markup(style),
        style_hash=f"sha256-{digest}",
    )


@cache
def _parts() -> tuple[str, jinja2.Template]:
    here = resources.files("orchestra.reporting")
    style, page = (here.joinpath(name).read_text("utf-8") for name in ("testpage.css", "testpage.html.j2"))
    return style, jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True).from_string(
        page
    )


def _check(check: CheckResult) -> Values:
    return {
        "name": plain(check.name, NAME_CHARACTERS_MAX),
        "tone": "good" if check.passed else "bad",
        "word": "passed" if check.passed else "failed",
        "reason": "" if check.passed else plain(check.how),
        "time": show_ms(check.duration_ms),
        "tail": plain("\n".join(check.tail)),
    }


def _case(case: TestCase) -> Values:
    return {
        "name": plain(case.name, NAME_CHARACTERS_MAX),
        "suite": plain(case.suite, NAME_CHARACTERS_MAX),
        "word": case.result,
        "tone": {"passed": "good", "skipped": "dim"}.get(case.result, "bad"),
        "time": f"{case.seconds:.3f}",
        "detail": plain(case.detail),
    }
