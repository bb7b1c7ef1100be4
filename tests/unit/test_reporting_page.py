"""What the reports say: figures, failures, links, and that nothing a task wrote can act on whoever reads."""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.reporting.figures import actual_chain, attempt_span, covered_ms, failures, figures, verdict
from orchestra.reporting.html import render_html
from orchestra.reporting.markdown import escape, fenced, render_markdown
from orchestra.reporting.words import plain
from orchestra.testing.samples import (
    BEGIN_MS,
    HOSTILE,
    hostile_run,
    large_run,
    sample_attempt,
    sample_check,
    sample_detail,
    sample_report_data,
    sample_task,
    some_run,
)
from orchestra.views import ReportData

VOID = {"meta", "input", "rect", "line", "path"}
PAGE_BYTES_MAX = 3_000_000


class Page(HTMLParser):
    """Reads a page and keeps what matters: tags, attributes, text; complains about what does not close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, tag: str, word: str = "") -> int:
        return sum(name == tag and (not word or word in (values.get("class") or "").split()) for name, values in self.tags)


def hot_characters(text: str) -> list[str]:
    return [char for char in text if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and char not in "\n\t\u200c\u200d"]


def test_the_sums_are_right() -> None:
    first = sample_detail(sample_task("a"), [sample_attempt(end_ms=BEGIN_MS + 30_000)])
    tried = [
        sample_attempt(1, agent=2, end_ms=BEGIN_MS + 10_000, outcome="failed"),
        sample_attempt(2, agent=2, begin_ms=BEGIN_MS + 20_000, end_ms=BEGIN_MS + 40_000),
    ]
    data = sample_report_data([first, sample_detail(sample_task("b"), tried)], agents=4)
    sums = figures(data)
    assert (sums.wall_ms, sums.task_ms, sums.speed_up) == (40_000, 60_000, 1.5)
    assert (sums.agents_used, sums.agents_total, sums.attempts, sums.retries, sums.failed_attempts) == (2, 4, 3, 1, 1)
    assert (sums.tokens, sums.cost_usd_micros) == (36_000, 123_000)


def test_attempts_in_parallel_are_no_retries_and_count_once() -> None:
    both = [sample_attempt(1, agent=1), sample_attempt(2, agent=2, outcome="stopped")]
    sums = figures(sample_report_data([sample_detail(sample_task("a"), both)]))
    assert (sums.retries, sums.failed_attempts, sums.task_ms) == (0, 0, 60_000)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20))))
def test_covered_time_is_that_of_the_union(found: list[tuple[int, int]]) -> None:
    spans = [(begin, begin + length) for begin, length in found]
    assert covered_ms(spans) == len({moment for begin, end in spans for moment in range(begin, end)})


@pytest.mark.parametrize("agents", [1, 2, 3, 8])
def test_the_chain_adds_up_to_the_wall_time(agents: int) -> None:
    data = some_run(agents=agents)
    chain = actual_chain(data)
    assert sum(step.waited_ms + step.ran_ms for step in chain) == figures(data).wall_ms
    needs = {task.task: task.needs for task in data.plan.tasks}
    assert all(left.task in needs[right.task] for left, right in pairwise(chain))


@given(
    st.lists(
        st.tuples(st.lists(st.integers(0, 9), unique=True, max_size=3), st.integers(0, 900), st.integers(1, 900)), min_size=1, max_size=10
    )
)
def test_the_chain_adds_up_for_any_run(found: list[tuple[list[int], int, int]]) -> None:
    details = []
    ends: list[int] = []
    for index, (needs, waited, ran) in enumerate(found):
        before = [need for need in needs if need < index]
        begin = max([BEGIN_MS, *(ends[need] for need in before)]) + waited
        ends.append(begin + ran)
        task = sample_task(f"t{index}", needs=tuple(f"webapp.1/t{need}" for need in before))
        details.append(sample_detail(task, [sample_attempt(begin_ms=begin, end_ms=ends[-1])]))
    chain = actual_chain(sample_report_data(details))
    assert sum(step.waited_ms + step.ran_ms for step in chain) == max(ends) - BEGIN_MS


def test_an_attempt_that_goes_on_ends_now() -> None:
    assert attempt_span(sample_attempt(end_ms=0), BEGIN_MS + 5) == (BEGIN_MS, BEGIN_MS + 5)


def test_verdicts() -> None:
    words = {
        ("completed", "completed"): ("all 2 completed", "good"),
        ("completed", "failed"): ("1 failed of 2", "bad"),
        ("cancelled", "failed"): ("1 failed, 1 cancelled of 2", "bad"),
        ("completed", "running"): ("1 open of 2", "live"),
        ("completed", "cancelled"): ("1 cancelled of 2", "off"),
    }
    for statuses, expected in words.items():
        details = [sample_detail(sample_task(f"t{index}", status=status), []) for index, status in enumerate(statuses)]
        assert verdict(sample_report_data(details)) == expected


def test_failures_of_failed_tasks_come_first() -> None:
    found = failures(some_run())
    assert [(each.task, each.attempt.number, each.retried) for each in found] == [
        ("webapp.1/docs", 1, True),
        ("webapp.1/docs", 2, False),
        ("webapp.1/database", 1, True),
    ]


def test_the_page_shows_the_run() -> None:
    data = some_run()
    text = render_html(data)
    page = Page(text)
    attempts = sum(len(detail.attempts) for detail in data.details)
    assert page.count("g", "box") == 15
    assert page.count("path", "edge") == sum(len(task.needs) for task in data.plan.tasks)
    assert page.count("g", "bar") == attempts
    assert page.count("g", "hatched") == 3
    assert page.count("rect", "verify") == attempts - 2, "the two timeouts had no checks"
    assert sum(tag == "tr" and "data-s" in values for tag, values in page.tags) == 15
    words = " ".join(page.texts)
    for expected in (
        "1 failed, 2 cancelled of 15",
        "orchestra task logs webapp.1/docs",
        "orchestra run examples/webapp.yaml --resume",
        "no such column: created_at",
    ):
        assert expected in words


def test_the_page_needs_nothing_else() -> None:
    page = Page(render_html(some_run()))
    links = [value or "" for _, values in page.tags for name, value in values.items() if name in {"href", "src", "xlink:href"}]
    assert all(link.startswith(("#", "../results/")) for link in links)
    assert {"link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in page.tags)
    assert not any(name == "style" or name.startswith("on") for _, values in page.tags for name in values)
    policy = next(values["content"] or "" for tag, values in page.tags if tag == "meta" and "http-equiv" in values)
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert page.count("script") == 1


def test_links_lead_from_the_report_to_the_results() -> None:
    data = some_run()
    assert 'href="../results/webapp.1/plan/"' in render_html(data)
    assert 'href="../results/webapp.1/plan/execution.log"' in render_html(data)
    assert 'href="./results/webapp.1/plan/"' in render_html(data, folder="/work/.codex")
    assert "[folder](<../results/webapp.1/plan/>)" in render_markdown(data)


def test_hostile_text_stays_text() -> None:
    text = render_html(hostile_run())
    page = Page(text)
    assert page.count("script") == 1
    assert page.count("img") == 0
    assert hot_characters(text) == []
    assert any("<script>document.title='owned'</script>" in found for found in page.texts), "it is shown, as text"
    assert "{{ 7*7 }}" in " ".join(page.texts)
    assert not any((value or "").strip().lower().startswith("javascript:") for _, values in page.tags for value in values.values())
    text.encode()


@given(st.text(st.characters(codec=None)))
def test_nothing_hot_is_left_of_any_text(text: str) -> None:
    assert [char for char in hot_characters(plain(text)) if unicodedata.category(char) != "Cf"] == []
    plain(text).encode()


def test_hostile_text_stays_text_in_markdown() -> None:
    text = render_markdown(hostile_run())
    assert hot_characters(text) == []
    outside = re.sub(r"^(`{3,})text\n.*?\n\1$", "", text, flags=re.S | re.M)
    assert "<script" not in outside
    assert "<img" not in outside
    rows = [line for line in outside.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {4, 5, 7, 8}
    text.encode()


@given(st.text())
def test_escaped_text_is_one_line_without_active_characters(text: str) -> None:
    found = escape(text)
    assert "\n" not in found
    assert re.findall(r"(?<!\\)[`*_\[\]~|<]", found.replace("\\\\", "")) == []


@given(st.text("`a\n"))
def test_a_fence_cannot_be_closed_from_inside(text: str) -> None:
    lines = fenced(text).split("\n")
    fence = lines[-1]
    assert not any(line.strip().startswith(fence) for line in lines[1:-1])


@pytest.mark.parametrize(
    "data",
    [large_run(1000), large_run(1000, bad=True, text='<&"' * 100), large_run(1000, bad=True, text="あ" * 300)],
    ids=["good", "escapes", "wide"],
)
def test_a_thousand_tasks_still_make_a_usable_page(data: ReportData) -> None:
    text = render_html(data)
    assert len(text.encode()) < PAGE_BYTES_MAX
    page = Page(text)
    assert sum(tag == "tr" and "data-s" in values for tag, values in page.tags) == 1000
    assert page.count("g", "bar") == 1000
    assert page.count("g", "box") == 0
    assert len(render_markdown(data).encode()) < PAGE_BYTES_MAX


def test_what_is_left_out_is_said() -> None:
    words = " ".join(Page(render_html(large_run(2500, bad=True))).texts)
    assert "500 more are not listed here" in words
    assert "The first 300 are listed" in words
    assert "more attempts the lines are not shown" in words


def test_a_run_that_has_not_begun() -> None:
    data = sample_report_data(
        [sample_detail(sample_task("a", status="queued", started_ms=0, ended_ms=0, duration_ms=0, attempts=0, agents=()), ())]
    )
    assert "No attempt has begun." in render_html(data)
    assert "1 open of 1" in render_markdown(data)


def test_a_plan_without_tasks() -> None:
    data = sample_report_data([])
    assert "no tasks" in render_html(data)
    assert "no tasks" in render_markdown(data)


def test_every_status_has_a_page() -> None:
    for status in (
        "pending",
        "queued",
        "assigned",
        "running",
        "verifying",
        "unknown",
        "retry_wait",
        "completed",
        "failed",
        "cancelled",
        "unheard-of",
    ):
        data = sample_report_data([sample_detail(sample_task("a", status=status), [sample_attempt(end_ms=0, checks=(sample_check(),))])])
        assert status.replace("_", " ") in render_html(data)
        assert status.replace("_", " ") in render_markdown(data)


def test_the_source_is_quoted_for_the_shell() -> None:
    data = some_run()
    data = msgspec.structs.replace(data, plan=msgspec.structs.replace(data.plan, source="my plan; rm -rf.yaml"))
    assert "orchestra run 'my plan; rm -rf.yaml' --resume" in " ".join(Page(render_html(data)).texts)
    assert HOSTILE not in render_html(data)
