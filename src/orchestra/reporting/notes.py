"""What a report says of a task besides how it went: who planned it, what its reviews found, what was decided otherwise than it was written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from orchestra.views import TaskDetail, TaskView

FINDINGS_SHOWN_MAX: Final = 5


def notes_of(task: TaskView, detail: TaskDetail | None) -> list[str]:
    """Returns them as plain sentences, nothing where there is nothing to say."""
    return [*_of_task(task), *([] if detail is None else _of_detail(detail))]


def _of_task(task: TaskView) -> Iterator[str]:
    if task.origin:
        yield f"planned by {task.origin}"
    if task.reviews:
        yield f"reviews {task.reviews}"
    yield from task.warnings


def _of_detail(detail: TaskDetail) -> Iterator[str]:
    if detail.planned:
        yield f"planned {len(detail.planned)} task{'s' if len(detail.planned) > 1 else ''}"
    if detail.sent_back:
        yield f"sent back by a review {'once' if detail.sent_back == 1 else f'{detail.sent_back} times'}"
    for attempt in detail.attempts:
        review = attempt.review
        if review is not None:
            found = review.findings[:FINDINGS_SHOWN_MAX]
            places = (
                f"{each.severity}{f' {each.file}' if each.file else ''}{f':{each.line}' if each.line else ''}: {each.text}"
                for each in found
            )
            more = len(review.findings) - len(found)
            listed = "; ".join([*places, *([f"and {more} more"] if more else [])])
            word = "approved" if review.verdict == "approve" else "refused"
            yield f"attempt {attempt.number} {word}: {review.summary}" + (f" [{listed}]" if listed else "")
