"""Two coordinators on one root: the second is told who is first; past a deleted lock, the superseded one is refused by its term and does nothing more."""

from __future__ import annotations

import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from orchestra.codec.events import decode
from orchestra.core import events as e
from orchestra.ledgers.sqlite import SqliteLedger
from tests.chaos.support import Orchestra, check_exactly_once, orchestra, plan_text, wait_for

pytestmark = pytest.mark.timeout(180)


def terms_in(stage: Orchestra) -> list[tuple[int, int]]:
    """Returns the (term, pid) of every coordinator that began to lead, in the ledger's order."""
    with closing(SqliteLedger.open_readonly(stage.place.ledger)) as ledger:
        found = [decode(stored.body) for stored in ledger.read()]
    return [(event.term, event.pid) for event in found if isinstance(event, e.CoordinatorStarted)]


def test_the_second_is_refused_and_the_first_does_not_notice(tmp_path: Path) -> None:
    with orchestra(tmp_path) as stage:
        stage.up(4)
        name = stage.submit(plan_text(30, tmp_path))
        first = stage.coordinator()
        for _ in range(3):
            done = stage.run("coordinator", "--agents", "4")
            assert done.returncode == 75
            assert str(first) in done.stderr
        assert stage.coordinator() == first
        stage.wait_plan(name)
        stage.down()
    check_exactly_once(stage, 30)
    assert [pid for _, pid in terms_in(stage)] == [first]


def test_past_a_deleted_lock_the_superseded_one_is_refused_by_its_term(tmp_path: Path) -> None:
    with orchestra(tmp_path) as stage:
        old = stage.start("coordinator", "--agents", "4")
        stage.wait_ready()
        name = stage.submit(plan_text(40, tmp_path, work="sleep 0.2"))
        wait_for(lambda: len(stage.log()) >= 4, "work under way")
        (stage.place.ledger / "coordinator.lock").unlink()  # as a careless person might
        new = stage.start("coordinator", "--agents", "4")
        try:
            out, err = old.communicate(timeout=60)
            assert old.returncode not in (0, None), "the superseded one goes, and not as if it were finished"
            assert "Traceback" not in out + err
            assert "term" in err or "another coordinator" in err.lower(), err
            stage.wait_plan(name)
            stage.down()
        finally:
            for process in (old, new):
                finish(process)
    check_exactly_once(stage, 40)
    terms = terms_in(stage)
    assert [pid for _, pid in terms] == [old.pid, new.pid]
    assert terms[0][0] < terms[1][0]


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for a process that should be over by now, and ends it otherwise."""
    try:
        process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate(timeout=30)
