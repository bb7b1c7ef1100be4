"""What an agent is told about what it has to return, and about the work it has to review. The same for every kind that takes a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from orchestra.core.model import Outcome, TaskSpec

RETURN_VARIABLE: Final = "ORCHESTRA_RETURN"
RETURN_FOLDER: Final = "return"
"""Folder in the attempt's folder where the file lies: all that an agent in a sandbox has to be let write besides its working folder."""
RETURN_FILE: Final = f"{RETURN_FOLDER}/answer.json"
"""Where `stage/returning.py` looks for it."""
SHOWN_CHARACTERS_MAX: Final = 8_000
"""Of the reviewed task's own prompt."""

_WHERE: Final = (
    f"Write it as JSON to the file whose path is in the environment variable {RETURN_VARIABLE} "
    "(an absolute path outside of the working folder; the file is not there yet). Your last words are not read for it."
)
_PLAN: Final = """\
{{"tasks": [
  {{"id": "parser", "agent": "{agent}", "prompt": "Write src/parser.py, which ...", "files": ["src/parser.py"], "estimated_seconds": 600}},
  {{"id": "tests", "needs": ["parser"], "agent": "{agent}", "prompt": "Write tests/test_parser.py ...", "success_criteria": [{{"run": "pytest -q"}}]}}
]}}"""
_REVIEW: Final = """\
{"verdict": "approve", "summary": "One or two sentences.", "findings": [
  {"severity": "major", "file": "src/parser.py", "line": 17, "text": "What is wrong, and what would be right."}
]CRITERIA}"""
_CRITERIA: Final = """, "criteria": [
  {"number": 1, "met": true, "evidence": "What you looked at, and what it showed."}
]"""


def plan_wanted(kinds: Sequence[str], tasks_max: int) -> str:
    """Returns what an agent is told that has to return a plan."""
    return "\n".join(
        (
            f"Return a plan. {_WHERE} Its tasks are then carried out by other agents, each of which knows its own prompt and the files, and nothing else.",
            "",
            _PLAN.format(agent=kinds[0] if kinds else "claude"),
            "",
            "- id: letters, digits, '.', '_' or '-'; short, and once only. needs: ids of this plan that must be completed before.",
            "- Each task has exactly one of prompt (words for a model) and run (a shell script, without agent).",
            *((f"- agent is one of: {', '.join(kinds)}.",) if kinds else ()),
            '- success_criteria are run: {"run": "command"} must exit with 0; also "All tests pass" and "File exists: PATH".',
            '- "reviews": "ID" instead of a need makes a task the review of another one.',
            f"- At most {tasks_max} tasks. Tasks that may run at the same time must not change the same files. No workspace, env or agents.",
        )
    )


def review_wanted(reviewed: TaskSpec, outcome: Outcome | None, commit: str, judges: Sequence[str], earlier: str) -> str:
    """Returns what an agent is told that has to review the work of a task.

    Args:
        reviewed: The task.
        outcome: How its attempt ended.
        commit: Where the plan's branch was after the work had been merged, or empty.
        judges: Criteria to judge one by one.
        earlier: What was found the last time, or empty.
    """
    parts = [f"Review the work of task {reviewed.id}, which lies in your working folder. Change nothing.", "It was told:"]
    content = reviewed.payload.content.strip()
    cut = " [...]" if len(content) > SHOWN_CHARACTERS_MAX else ""
    parts.append("\n".join(f"> {line}" for line in (content[:SHOWN_CHARACTERS_MAX] + cut).splitlines()))
    files = reviewed.files or (() if outcome is None else outcome.output_files)
    if files:
        parts.append(f"It was to change: {', '.join(files[:100])}.")
    if commit:
        parts.append(f"Its work was merged as {commit}: `git show -m {commit}` shows what it changed.")
    if outcome is not None and outcome.checks:
        parts.append("Checks that were run and passed: " + ", ".join(check.name for check in outcome.checks[:20]) + ".")
    if outcome is not None and outcome.summary:
        parts.append(f"It said at its end: {outcome.summary}")
    if earlier:
        parts.append(f"You look at it for a second time. Your findings of before, which it was told to deal with:\n{earlier}")
    if judges:
        listed = "\n".join(f"{number}. {each}" for number, each in enumerate(judges, 1))
        parts.append(f"Judge each of these criteria, which no program can check:\n{listed}")
    parts.append(f"Return a review. {_WHERE}")
    parts.append(_REVIEW.replace("CRITERIA", _CRITERIA if judges else ""))
    parts.append(
        "verdict is approve or refuse. Refuse what must not stay as it is: the task then gets your findings and one more try, and you look again. "
        "severity is critical, major, minor or info; findings may be empty if you approve."
    )
    return "\n\n".join(parts)
