"""What is played: how many agents for how long, which faults of the API, and what has to hold in the end. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from orchestra.errors import BadInput, NotFound, PlanInvalid
from orchestra.intake.document import Document, Path, parse, show_path
from orchestra.intake.fields import Record
from orchestra.intake.shape import convert, nearest

SIMULATED_429: Final = "Simulate API 429 errors"
"""A minute in which three of ten requests are refused, and one in which all are; of a drill under ten minutes, a tenth of it each, after another tenth."""
MINUTE_S: Final = 60.0
GROWTH_MAX: Final = 1.2
"""Memory at the end over that at a quarter of the time, from which it counts as a leak."""

Share = Annotated[float, Meta(gt=0, le=100)]


class Fault(Record, frozen=True, kw_only=True):
    """The API answers a share of the requests with an error for a while."""

    status: Annotated[int, Meta(ge=400, le=599, description="HTTP status of the answers.")] = 429
    share_percent: Annotated[Share, Meta(description="Of the requests in that time.")] = 100.0
    from_seconds: Annotated[float, Meta(ge=0, description="When it begins, counted from the first request.")] = 0.0
    for_seconds: Annotated[float, Meta(gt=0, description="How long it goes on.")] = MINUTE_S
    retry_after_seconds: Annotated[int, Meta(ge=0, description="What the answers say in `retry-after`.")] | None = None

    def holds(self, at_s: float) -> bool:
        """Tells whether it is going on."""
        return self.from_seconds <= at_s < self.from_seconds + self.for_seconds


class Scenario(Record, frozen=True, kw_only=True):
    """One drill."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    agents: Annotated[int, Meta(ge=1, le=250, description="Windows with an agent each.")]
    duration_seconds: Annotated[
        float, Meta(gt=0, le=7 * 86_400, description="How long new tasks come; what was begun is finished after that.")
    ]
    inject_failures: Annotated[tuple[str | Fault, ...], Meta(max_length=100, description=f"Faults, or the phrase {SIMULATED_429!r}.")] = ()
    success_criteria: Annotated[tuple[str, ...], Meta(min_length=1, max_length=100, description="Phrases; see CRITERIA.")]
    turns: Annotated[int, Meta(ge=1, le=1000, description="Requests that an agent makes for a task, one after the other.")] = 4
    answer_seconds: Annotated[float, Meta(ge=0, le=600, description="How long the API takes for an answer.")] = 1.0

    def faults(self) -> tuple[Fault, ...]:
        """Returns what the API does wrong and when."""
        return tuple(
            fault for each in self.inject_failures for fault in ((each,) if isinstance(each, Fault) else _storm(self.duration_seconds))
        )


def _storm(duration_s: float) -> tuple[Fault, ...]:
    part = min(MINUTE_S, duration_s / 10)
    return (
        Fault(share_percent=30.0, from_seconds=part, for_seconds=part, retry_after_seconds=1),
        Fault(from_seconds=2 * part, for_seconds=part),
    )


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured."""

    agents_wanted: int
    agents_started: int
    crashes: int
    """Workers that were lost."""
    uptime_percent: float
    """Of all agents together, as seen once a second."""
    tasks_submitted: int
    tasks_completed: int
    attempts: int
    deferred: int
    """Times that a task was put back because the API was not to be had; no fault of its own."""
    api_answers: int
    """That agents got."""
    api_errors: int
    """Those of them that were errors."""
    injected: int
    """Errors that the API gave by its script."""
    recovery_seconds: float | None
    """From the end of the last fault until a task was completed and the agents had work again; None: never, or there was no fault."""
    memory_growth: float
    """Memory of coordinator and gateway at the end over that at a quarter of the time; 0: not known."""
    seconds: float
    """In all, until the last task was over."""


class Verdict(msgspec.Struct, frozen=True):
    """One criterion, and whether it was met."""

    criterion: str
    met: bool
    measured: str


Judge = Callable[[Figures, float], tuple[bool, str]]


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def _recovery(found: Figures, minutes: float) -> tuple[bool, str]:
    took = found.recovery_seconds
    return took is not None and took <= minutes * 60, "it did not" if took is None else f"after {took:.0f} s"


def _error_rate(found: Figures, most: float) -> tuple[bool, str]:
    rate = _percent(found.api_errors, found.api_answers)
    return bool(found.api_answers) and rate < most, f"{rate:.1f} %"


CRITERIA: Final[dict[str, Judge]] = {
    "All agents start successfully": lambda m, n: (m.agents_started == m.agents_wanted, f"{m.agents_started} of {m.agents_wanted}"),
    "No crashes within N minutes": lambda m, n: (not m.crashes, f"{m.crashes}"),
    "Total crashes < N": lambda m, n: (m.crashes < n, f"{m.crashes}"),
    "API error rate < N%": _error_rate,
    "Auto-recovery within N minutes": _recovery,
    "Task completion rate > N%": lambda m, n: (
        _percent(m.tasks_completed, m.tasks_submitted) > n,
        f"{m.tasks_completed} of {m.tasks_submitted}",
    ),
    "Uptime > N%": lambda m, n: (m.uptime_percent > n, f"{m.uptime_percent:.2f} %"),
    "Memory leak detection: none": lambda m, n: (0 < m.memory_growth < GROWTH_MAX, f"{m.memory_growth:.2f} x"),
}
"""What criteria may say, with a number of one's own for N, and how it is judged."""
NUMBER: Final = r"(\d+(?:\.\d+)?)"


def _find(phrase: str) -> tuple[Judge, float] | None:
    for known, judged in CRITERIA.items():
        pattern = r"\s+".join(re.sub(r"\bN\b", lambda _: NUMBER, word) for word in known.replace("N%", "N %").split())
        if (match := re.fullmatch(pattern.replace(r"\s+%", r"\s*%"), phrase.strip(), re.IGNORECASE)) is not None:
            return judged, float(match[1]) if match.groups() else 0.0
    return None


def judge(scenario: Scenario, found: Figures) -> tuple[Verdict, ...]:
    """Returns for each criterion whether it was met."""
    verdicts = []
    for phrase in scenario.success_criteria:
        known = _find(phrase)
        assert known is not None, phrase  # it was checked when it was read
        judged, number = known
        verdicts.append(Verdict(phrase, *judged(found, number)))
    return tuple(verdicts)


class _File(Record, frozen=True):
    test_scenarios: Annotated[tuple[Scenario, ...], Meta(min_length=1, max_length=100)]


def read_scenarios(text: str, source: str) -> tuple[Scenario, ...]:
    """Returns the scenarios of a file, YAML or JSON.

    Raises:
        PlanInvalid: It cannot be played; the message has line and column.
    """
    document = parse(text, source=source)
    found = convert(document.value, _File)
    if isinstance(found, list):
        first = found[0]
        raise PlanInvalid(f"{document.where(first.path)}: {first.message}", field=show_path(first.path), hint=first.hint)
    for index, scenario in enumerate(found.test_scenarios):
        for number, each in enumerate(scenario.inject_failures):
            if isinstance(each, str) and each.strip().lower() != SIMULATED_429.lower():
                hint = f"write {SIMULATED_429!r}, or a mapping with status, share_percent, from_seconds and for_seconds"
                raise _unknown(document, ("test_scenarios", index, "inject_failures", number), each, hint)
        for number, phrase in enumerate(scenario.success_criteria):
            if _find(phrase) is None:
                hint = f"what can be measured: {'; '.join(CRITERIA)}"
                raise _unknown(document, ("test_scenarios", index, "success_criteria", number), phrase, hint)
    return found.test_scenarios


def _unknown(document: Document, path: Path, phrase: str, hint: str) -> PlanInvalid:
    return PlanInvalid(f"{document.where(path)}: {phrase[:100]!r} is not known", field=show_path(path), hint=hint)


def shipped() -> tuple[Scenario, ...]:
    """Returns the scenarios that come with the program."""
    return read_scenarios(resources.files("orchestra").joinpath("testing", "drills", "scenarios.yaml").read_text("utf-8"), "scenarios.yaml")


def choose(scenarios: Sequence[Scenario], name: str) -> Scenario:
    """Returns the scenario of that name; case, and how words are joined, does not matter.

    Raises:
        NotFound: There is none.
    """
    known: Mapping[str, Scenario] = {plain(each.name): each for each in scenarios}
    if plain(name) not in known:
        close = nearest(plain(name), known)
        hint = f"did you mean {close!r}?" if close else f"there are {', '.join(known)}"
        raise NotFound(f"there is no scenario {name[:80]!r}", field="scenario", hint=hint)
    return known[plain(name)]


def plain(name: str) -> str:
    """Returns a name as one types it: `api-rate-limit-stress`."""
    return "-".join(re.findall(r"[a-z0-9]+", name.lower()))


def resized(scenario: Scenario, agents: int | None, duration_s: float | None) -> Scenario:
    """Returns the scenario with another size.

    Raises:
        BadInput: Its faults are given in seconds that this duration does not have.
    """
    changed = msgspec.structs.replace(scenario, agents=agents or scenario.agents, duration_seconds=duration_s or scenario.duration_seconds)
    last = max((fault.from_seconds + fault.for_seconds for fault in changed.faults()), default=0.0)
    if last > changed.duration_seconds:
        raise BadInput(
            f"its faults go on until {last:g} s, but it lasts {changed.duration_seconds:g} s",
            field="duration",
            hint="make it longer, or change inject_failures",
        )
    return changed
