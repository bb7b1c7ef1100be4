"""The checks of an attempt once more, on what its work was merged to: run by a program of their own as a worker runs them, under the same limits.

It is given the order as one line of its input, and prints what the checks came to as its last line. When its input ends, or says anything more, whoever asked is
gone or wants it no more: what runs is ended, and nothing of it stays.
"""

from __future__ import annotations

import os
import select
import shutil
import time

from .codec import dumps, loads
from .ending import become_subreaper, ending, tagged
from .files import write_all
from .loop import BEAT_S
from .processes import processes, with_descendants
from .slot import Slot
from .spec import checked_spec
from .temporary import forget_temporary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ORDER_BYTES_MAX = 16 << 20
FOUND_NOTHING = b"[]"


class Bench(Slot):
    """A slot without a window and without a journal: nobody takes over from it, and all it has to tell is how the checks went."""

    def __init__(self, base: str, agent: str, folder: str) -> None:
        super().__init__(base, agent)
        os.set_blocking(1, True)
        self.view.gone = True
        self.folder = folder
        self.measured = time.monotonic()

    def attend(self) -> None:
        """From now on the end of the input ends everything."""
        self.listen(0, select.POLLIN, self._on_input)

    def _on_input(self, fd: int, _events: int) -> None:
        self.forget(fd)
        self.stopping_all = True

    def _after_turn(self) -> None:
        super()._after_turn()
        if self.program is not None and time.monotonic() >= self.measured + BEAT_S:
            self.measured = time.monotonic()
            self.program.measure()

    def tell(self, kind: str, fields: bytes, *, at_once: bool = True) -> None:
        """There is no journal."""

    def note_child(self, child: dict[str, Any]) -> None:
        """There is no successor: whoever comes after finds what is left by the folder that its environment names."""


def run(base: str, path: str, order: bytes) -> bytes:
    """Ends what an earlier one left of these checks, then runs them; gives their results as JSON."""
    from .attempt import Attempt

    spec = checked_spec(loads(order))
    folder = base + "/" + path
    if "ORCHESTRA_REPORTS_DIR" in spec["env"]:  # what these checks count is not what the attempt's own counted
        spec["env"]["ORCHESTRA_REPORTS_DIR"] = folder + "/reports"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    become_subreaper()
    bench = Bench(base, str(spec.get("agent", "0")), folder)
    bench.catch_signals()
    bench.attend()

    def left() -> dict[int, str]:
        table = processes()
        return with_descendants(table, tagged(table, folder))

    for _ in ending(left, 0, {}):
        bench.turn(time.monotonic() + BEAT_S / 10)
    shutil.rmtree(folder + "/scratch", ignore_errors=True)  # a sandbox that nobody left
    forget_temporary(folder)
    attempt = Attempt(bench, folder, spec)
    attempt.enter()  # they run what the agent wrote
    results = attempt.run_checks()
    attempt.leave()
    attempt.output.log.close()
    return FOUND_NOTHING if bench.stopping_all else dumps(results)


def main(argv: list[str]) -> int:
    """`<node's folder> <folder of the checks below it>`; the order comes over the input."""
    if len(argv) != 2:
        os.write(2, b"usage: checks <node's folder> <folder>\n")
        return 2
    os.umask(0o077)
    os.chdir("/")
    order = b""
    while not order.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part or len(order) > ORDER_BYTES_MAX:
            os.write(2, b"there is no whole order\n")
            return 2
        order += part
    write_all(1, b"\n" + run(os.path.realpath(argv[0]), argv[1], order) + b"\n")
    return 0
