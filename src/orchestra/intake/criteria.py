"""Success criteria as checks that are run. What cannot be run is refused when it is submitted, not believed when it is done."""

from __future__ import annotations

import difflib
import posixpath
import re
from collections.abc import Sequence
from typing import Annotated, Final

from msgspec import UNSET, Meta, UnsetType

from orchestra.core.model import CHECK_TIMEOUT_DEFAULT_MS, Check
from orchestra.errors import BadInput
from orchestra.intake import check_scripts
from orchestra.intake import fields as f
from orchestra.quantity import ms_from_seconds

SHELL: Final = "/bin/sh"
NAME_MAX: Final = 200
HINT: Final = 'use {run: "command"} or "$ command", or one of: "All tests pass", "Code coverage > 80%", "Linter passes", "Builds", "File exists: PATH"'


class RunCriterion(f.Record, frozen=True):
    """A command that has to end with exit code 0."""

    run: Annotated[f.Content, Meta(description="Shell script, run in the task's folder.")]
    name: Annotated[str, Meta(min_length=1, max_length=NAME_MAX, description="What people call it.")] | UnsetType = UNSET
    timeout_seconds: Annotated[f.Seconds, Meta(description="Longest it may run. Default 600.")] | UnsetType = UNSET


Criterion = Annotated[str, Meta(min_length=1, max_length=10_000, description=HINT)] | RunCriterion

_TESTS: Final = re.compile(r"(?:(?:all|the) )?(?:the |unit )?tests? (?:(?:must|should) )?(?:pass|passes|passed|are green|succeed)|tests?")
_LINTER: Final = re.compile(
    r"(?:the )?(?:linter|lint) (?:passes|pass|passed|is clean)|(?:no|0|zero) lint(?:er|ing)? (?:errors?|warnings?)|lint(?:er)?"
)
_BUILD: Final = re.compile(r"(?:it |the )?(?:project |code )?builds|(?:the )?build (?:passes|succeeds|is green)|build")
_COVERAGE: Final = re.compile(
    r"(?:code |test )?coverage (?:is )?(>=|>|=>|≥|at least|above|over|of at least) ?([0-9]{1,3}(?:\.[0-9]{1,4})?) ?(?:%|percent)?"
)
_FILE: Final = re.compile(r"file exists:\s*(.+)", re.IGNORECASE | re.DOTALL)
_STRICT: Final = frozenset({">", "above", "over"})
_ALIKE: Final = {
    "all tests pass": "All tests pass",
    "tests pass": "All tests pass",
    "code coverage > 0%": "Code coverage > 80%",
    "coverage > 0%": "Coverage > 80%",
    "linter passes": "Linter passes",
    "no linter errors": "No linter errors",
    "builds": "Builds",
    "build passes": "Build passes",
    "file exists": "File exists: PATH",
}
"""Phrases that people mistype, with 0 for every number and without a path, and how they are written."""
_ALIKE_MIN: Final = 0.85
"""A wrong, missing or doubled letter is above this ("Covrage > 80%", "Linter pases"), another word below ("All docs pass")."""


def checks_for(criteria: Sequence[str | RunCriterion], *, field: str, judged: Sequence[str] = (), otherwise: str = "") -> tuple[Check, ...]:
    """Returns what to run for each criterion that is not judged, in order.

    Args:
        criteria: As written.
        field: Path of the list, for messages.
        judged: The phrases that an agent judges.
        otherwise: What else can be done with a phrase that is not known.

    Raises:
        BadInput: A criterion cannot be checked by a machine; `field` ends in its position.
    """
    to_run = ((index, each) for index, each in enumerate(criteria) if not (isinstance(each, str) and each.strip() in judged))
    return tuple(_check(criterion, f"{field}[{index}]", otherwise) for index, criterion in to_run)


def for_judgement(criteria: Sequence[str | RunCriterion]) -> tuple[str, ...]:
    """Returns those that no program can check: phrases that are neither commands nor known, nor known ones with a slip of the pen."""
    phrases = (each.strip() for each in criteria if isinstance(each, str) and "\0" not in each)
    return tuple(text for text in phrases if text and text[0] != "$" and not _is_known(text) and not _alike(text))


def _alike(text: str) -> str:
    """Returns the known phrase that one is most likely a mistyped form of, or nothing."""
    words = re.sub(r"\s+", " ", text.lower()).rstrip(".! ")
    head = words.partition(":")[0]
    plain = re.sub(r"[0-9]+(?:\.[0-9]+)?", "0", head)
    return next((_ALIKE[name] for name in difflib.get_close_matches(plain, _ALIKE, 1, _ALIKE_MIN)), "")


def _is_known(text: str) -> bool:
    try:
        return _known(text, "") is not None
    except BadInput:
        return True  # and cannot be met, which whoever makes the check says


def written(criterion: str | RunCriterion) -> str:
    """Returns a criterion as people read it."""
    return criterion if isinstance(criterion, str) else f.given(criterion.name, f"$ {criterion.run}")


def _check(criterion: str | RunCriterion, field: str, otherwise: str) -> Check:
    if isinstance(criterion, RunCriterion):
        name = f.given(criterion.name, f.first_line(criterion.run, NAME_MAX))
        seconds = criterion.timeout_seconds
        timeout = CHECK_TIMEOUT_DEFAULT_MS if seconds is UNSET else ms_from_seconds(f.given(seconds, 0), field=f"{field}.timeout_seconds")
        return Check(name, (SHELL, "-c", criterion.run), timeout)
    text = criterion.strip()
    if "\0" in text:
        raise BadInput("the criterion holds a NUL character", field=field, hint=HINT)
    if text.startswith("$ ") and text[2:].strip():
        return Check(f.first_line(text[2:], NAME_MAX), (SHELL, "-c", text[2:]))
    argv = _known(text, field)
    if argv is None:
        likely = f"did you mean {_alike(text)!r}? If not, word it otherwise" if _alike(text) else ""
        hint = likely or "; ".join(filter(None, (HINT, otherwise)))
        raise BadInput(f"{text[:120]!r} cannot be checked by a machine", field=field, hint=hint)
    return Check(f.first_line(text, NAME_MAX), argv)


def _known(text: str, field: str) -> tuple[str, ...] | None:
    """Returns what to run for a criterion known by name, or nothing."""
    if match := _FILE.fullmatch(text):
        return ("test", "-e", _inside(match[1].strip().strip("`\"'"), field))
    words = re.sub(r"\s+", " ", text.lower()).rstrip(".! ")
    if _TESTS.fullmatch(words):
        return (SHELL, "-c", check_scripts.TESTS, check_scripts.TESTS_NAME)
    if _LINTER.fullmatch(words):
        return (SHELL, "-c", check_scripts.LINTER, check_scripts.LINTER_NAME)
    if _BUILD.fullmatch(words):
        return (SHELL, "-c", check_scripts.BUILD, check_scripts.BUILD_NAME)
    if match := _COVERAGE.fullmatch(words):
        if float(match[2]) > 100:
            raise BadInput(f"a coverage of {match[2]} % cannot be reached", field=field, hint="use 0 to 100")
        return (SHELL, "-c", check_scripts.COVERAGE, check_scripts.COVERAGE_NAME, ">" if match[1] in _STRICT else ">=", match[2])
    return None


def _inside(path: str, field: str) -> str:
    """Returns the path with `./` before it, so that no name of a file is taken for an operator."""
    if not path or posixpath.isabs(path) or ".." in path.split("/"):
        raise BadInput(f"{path[:120]!r} is not a path inside the workspace", field=field, hint="use a relative path without '..'")
    return f"./{posixpath.normpath(path)}"
