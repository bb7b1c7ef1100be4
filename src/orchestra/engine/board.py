"""What running attempts are doing at the moment: activity, progress, questions. Volatile by design; nothing is decided from it."""

from __future__ import annotations

from collections.abc import Sequence

from orchestra.agents.adapter import Signal
from orchestra.core import events as e
from orchestra.core.state import State
from orchestra.engine.kernel import Happened
from orchestra.ids import AttemptId, TaskId


class Board:
    """The latest signal of each running attempt."""

    def __init__(self) -> None:
        self._signals: dict[AttemptId, Signal] = {}

    def post(self, attempt: AttemptId, signal: Signal) -> None:
        """Takes in a signal; what it leaves empty stays as it was."""
        known = self._signals.get(attempt)
        if known is not None:
            signal = Signal(
                activity=signal.activity or known.activity,
                progress=known.progress if signal.progress is None else signal.progress,
                usage=signal.usage or known.usage,
                session=signal.session or known.session,
                waiting_for=signal.waiting_for,
                number=signal.number,
            )
        self._signals[attempt] = signal

    def of(self, task: TaskId, number: int) -> Signal:
        """Returns what is known of the attempt."""
        return self._signals.get(AttemptId(task, number), _NOTHING)

    def on_events(self, state: State, happened: Sequence[Happened]) -> None:
        """Forgets attempts that are over."""
        for each in happened:
            if isinstance(each.event, e.AttemptEnded):
                self._signals.pop(AttemptId(each.event.task, each.event.attempt), None)


_NOTHING = Signal()
