"""What the SQLite ledger does when disks, processes and people misbehave: it refuses, says what is missing, and never serves a wrong event."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

import orchestra.ledger
from orchestra.errors import LedgerDamaged, LedgerFailed, LedgerLocked
from orchestra.ledger import Appended, Snapshot, StoredEvent
from orchestra.ledgers import care
from orchestra.ledgers import sqlite_format as fmt
from orchestra.ledgers.marks import read_mark
from orchestra.ledgers.sqlite import SqliteLedger, SqliteOptions
from orchestra.testing.conformance.ledger import check_chain, make_append
from tests.integration.sqlite_live import CLOCK, PLAIN, Live, events_in, execute, flip_bit, rows_sqlite_sees

ENVIRONMENT: Final = {**os.environ, "PYTHONPATH": str(Path(orchestra.ledger.__file__).parents[1])}

WRITER: Final = """
import sys
from pathlib import Path
from orchestra.ledgers.sqlite import SqliteLedger, SqliteOptions
from orchestra.testing.conformance.ledger import SteadyClock, make_append

ledger = SqliteLedger.open(Path(sys.argv[1]), SqliteOptions(checkpoint_pages=40), SteadyClock())
term, seq = ledger.claim_term(), ledger.tail().seq
print("ready", flush=True)
while seq < int(sys.argv[2]):
    name = f"{term}-{seq}"
    bodies = [b"%d-%d-%d " % (term, seq, part) * (1 + seq % 50) for part in range(1 + seq % 7)]
    seq = ledger.append(make_append(name, seq, *bodies, term=term)).last_seq
    print(name, seq, flush=True)
sys.stdin.read()
"""

FAILING_DISK: Final = """
import json, sys
from pathlib import Path
from orchestra.errors import LedgerFailed
from orchestra.ledgers.sqlite import SqliteLedger, SqliteOptions
from orchestra.testing.conformance.ledger import SteadyClock, make_append

ledger = SqliteLedger.open(Path(sys.argv[1]), SqliteOptions(), SteadyClock())
acknowledged, raised = [], []
for number in range(200):
    try:
        acknowledged.append(ledger.append(make_append(f"a{number}", number, b"x" * 300)).last_seq)
    except LedgerFailed as exc:
        raised.append(exc.code)
        if len(raised) == 3:
            break
try:
    ledger.find("nobody")
    raised.append("answered")
except LedgerFailed as exc:
    raised.append(exc.code)
print(json.dumps([acknowledged, raised]))
ledger.close()
"""


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    made = Live(tmp_path / "ledger", SqliteOptions(mark_copy=tmp_path / "state" / "tail.mark"))
    yield made
    made.ledger.close()


def test_a_truncated_log_is_refused_with_the_count(live: Live, tmp_path: Path) -> None:
    total, chance, counted = len(live.events), random.Random(7), 0
    for number in range(20):
        folder = live.copy(tmp_path / f"cut{number}")
        log = folder / (fmt.DATABASE_NAME + "-wal")
        os.truncate(log, chance.randrange(log.stat().st_size))
        with pytest.raises(LedgerDamaged) as raised:
            SqliteLedger.open(folder, PLAIN, CLOCK)
        assert "orchestra ledger repair" in raised.value.hint
        left = rows_sqlite_sees(folder)
        if left is None:  # so little is left that the tables themselves are gone
            continue
        assert left < total, "SQLite dropped them and said nothing"
        assert f"{total - left} event" in raised.value.message
        assert f"seq {left + 1} to {total}" in raised.value.message
        counted += 1
    assert counted > 10


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_is_detected_or_harmless(live: Live, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    if seed % 4 < 2:  # half in the database, half in the log
        with closing(sqlite3.connect(live.folder / fmt.DATABASE_NAME)) as connection:
            connection.execute(fmt.CHECKPOINT_QUIETLY).fetchall()
        live.extend(10)
    original = live.events
    folder = live.copy(tmp_path / "flipped")
    flip_bit(folder / (fmt.DATABASE_NAME + ("" if seed % 4 < 2 else "-wal")), chance)
    check_never_served_wrong(folder, original, live.outcomes, live.term)


def check_never_served_wrong(folder: Path, original: list[StoredEvent], outcomes: dict[str, Appended], term: int) -> None:
    try:
        intact = care.verify(folder).ok
    except LedgerFailed:
        intact = False
    served: list[StoredEvent] = []
    try:
        with closing(SqliteLedger.open(folder, PLAIN, CLOCK)) as ledger:
            served.extend(ledger.read())
            for name, outcome in outcomes.items():
                assert ledger.find(name) == outcome
            assert ledger.claim_term() == term + 1
    except LedgerFailed:
        assert not intact
        assert served == original[: len(served)]
    else:
        assert served == original


def test_an_append_record_that_cannot_be_found_is_noticed(tmp_path: Path) -> None:
    live = Live(tmp_path / "ledger")
    live.ledger.close()
    execute(live.folder, "UPDATE append_id SET idempotency_id = 'other' WHERE first_seq = (SELECT max(first_seq) FROM append_id)")
    with pytest.raises(LedgerDamaged, match="record of an append"):
        SqliteLedger.open(live.folder, PLAIN, CLOCK)
    assert any("records of the appends" in problem for problem in care.verify(live.folder).problems)


def test_a_torn_mark_leaves_the_older_slot(live: Live, tmp_path: Path) -> None:
    original = live.events
    for slot in (0, 4096):
        folder = live.copy(tmp_path / f"torn{slot}")
        with (folder / fmt.MARK_NAME).open("r+b") as file:
            file.seek(slot + 20)
            file.write(b"torn")
        mark = read_mark(folder / fmt.MARK_NAME)
        assert mark is not None
        assert len(original) - 5 <= mark.seq <= len(original)
        assert events_in(folder) == original
        assert read_mark(folder / fmt.MARK_NAME) is not None


def test_a_ledger_without_any_mark_is_refused_until_repaired(live: Live, tmp_path: Path) -> None:
    original = live.events
    folder = live.copy(tmp_path / "unmarked")
    (folder / fmt.MARK_NAME).write_bytes(b"\0" * 100)
    with pytest.raises(LedgerDamaged, match="no intact high-water mark"):
        SqliteLedger.open(folder, PLAIN, CLOCK)
    plan = care.plan_repair(folder)
    assert plan.lost_count == 0
    care.repair(folder, plan, True, clock=CLOCK)
    assert events_in(folder) == original
    with_copy = live.copy(tmp_path / "unmarked-but-copied")
    (with_copy / fmt.MARK_NAME).unlink()
    copied = SqliteOptions(mark_copy=Path(shutil.copy(live.folder / fmt.MARK_NAME, tmp_path / "copy.mark")))
    assert events_in(with_copy, copied) == original


def test_a_deleted_database_is_not_made_anew(live: Live, tmp_path: Path) -> None:
    folder = live.copy(tmp_path / "deleted")
    for path in fmt.files_of(folder / fmt.DATABASE_NAME):
        path.unlink(missing_ok=True)
    with pytest.raises(LedgerDamaged, match="is gone"):
        SqliteLedger.open(folder, PLAIN, CLOCK)
    assert not (folder / fmt.DATABASE_NAME).exists()
    assert care.plan_repair(folder).lost_count == len(live.events)


def test_a_lost_claim_of_a_term_is_noticed(live: Live, tmp_path: Path) -> None:
    folder = live.copy(tmp_path / "before")
    live.ledger.claim_term()
    shutil.copy(live.folder / fmt.MARK_NAME, folder / fmt.MARK_NAME)
    with pytest.raises(LedgerDamaged, match="term"):
        SqliteLedger.open(folder, PLAIN, CLOCK)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=False).returncode != 0:
        pytest.fail("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def fill(ledger: SqliteLedger) -> LedgerFailed | None:
    """Appends until the ledger refuses, and returns how it does; every acknowledged event is one more in its tail."""
    for number in range(10_000):
        try:
            assert ledger.append(make_append(f"a{number}", number, b"x" * 2000)).last_seq == number + 1
        except LedgerFailed as exc:
            return exc
    return None


def test_a_full_disk_stops_writing_until_there_is_space(small_disk: Path, tmp_path: Path) -> None:
    options = SqliteOptions(mark_copy=tmp_path / "tail.mark", checkpoint_pages=100)
    with closing(SqliteLedger.open(small_disk / "ledger", options, CLOCK)) as ledger:
        refused = fill(ledger)
        acknowledged = ledger.tail().seq
        assert type(refused) is LedgerFailed
        assert "disk is full" in refused.hint
        assert ledger.find(f"a{acknowledged}") is None
        assert len(list(ledger.read())) == acknowledged > 50
        with pytest.raises(LedgerFailed, match="snapshot"):
            ledger.save_snapshot(Snapshot(acknowledged, ledger.tail().hash, 1, b"s" * (2 << 20)))
        subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
        outcome = ledger.append(make_append(f"a{acknowledged}", acknowledged, b"there is space again"))
        assert outcome.first_seq == acknowledged + 1
    events = events_in(small_disk / "ledger", options)
    check_chain(events)
    assert len(events) == acknowledged + 1
    assert care.verify(small_disk / "ledger", options).ok


def test_a_failing_disk_makes_the_outcome_unknown_and_ends_the_handle(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.fail("strace is missing; scripts/setup.sh --test installs it")
    inject = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO:when=40+"]
    run = subprocess.run(
        [*inject, sys.executable, "-c", FAILING_DISK, str(tmp_path / "ledger")],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode != 0 and "ptrace" in run.stderr:
        pytest.fail(
            f"tracing is not allowed here ({run.stderr.strip()}); allow it: docker run --cap-add SYS_PTRACE, or sysctl kernel.yama.ptrace_scope=1"
        )
    acknowledged, raised = json.loads(run.stdout)
    assert raised == ["ledger_unknown", "ledger_failed", "ledger_failed", "ledger_unknown"]
    assert acknowledged == list(range(1, len(acknowledged) + 1))
    assert acknowledged
    with closing(SqliteLedger.open(tmp_path / "ledger", PLAIN, CLOCK)) as ledger:
        events = list(ledger.read())
        check_chain(events)
        assert len(events) in (len(acknowledged), len(acknowledged) + 1)
        found = ledger.find(f"a{len(acknowledged)}")
        assert (found is not None) == (len(events) > len(acknowledged))
        assert ledger.append(make_append("next", len(events), b"on")).last_seq == len(events) + 1


def start_writer(folder: Path, until: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(until)], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_killed_writers_lose_nothing_they_acknowledged(tmp_path: Path) -> None:
    chance, acknowledged = random.Random(11), dict[str, int]()
    for _ in range(20):
        process = start_writer(tmp_path / "ledger", 1 << 40)
        with process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(chance.randrange(1, 80))]
            process.kill()
            lines += [line for line in process.stdout if line.endswith("\n")]
        assert process.returncode == -signal.SIGKILL
        acknowledged.update((name, int(seq)) for name, seq in (line.split() for line in lines))
        with closing(SqliteLedger.open(tmp_path / "ledger", PLAIN, CLOCK)) as ledger:
            events = list(ledger.read())
            check_chain(events)
            assert len({event.body for event in events}) == len(events)
            found = {name: ledger.find(name) for name in acknowledged}
        assert {name: outcome and outcome.last_seq for name, outcome in found.items()} == acknowledged
    assert care.verify(tmp_path / "ledger").ok


def test_a_second_coordinator_is_told_who_is_first(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    process = start_writer(folder, 20)
    with process:
        assert process.stdout is not None
        while not process.stdout.readline().endswith(" 20\n") and care.verify(folder).events < 20:
            pass
        with pytest.raises(LedgerLocked) as raised:
            SqliteLedger.open(folder, PLAIN, CLOCK)
        assert f"process {process.pid} on " in raised.value.message
        assert "started 2023-11-14T22:13:20+00:00" in raised.value.message
        with closing(SqliteLedger.open_readonly(folder)) as ledger:
            assert ledger.tail().seq >= 20
            with pytest.raises(LedgerFailed, match="reading only"):
                ledger.claim_term()
        process.kill()
    assert len(events_in(folder)) >= 20


def test_two_handles_past_the_lock_cannot_break_the_sequence(tmp_path: Path) -> None:
    live = Live(tmp_path / "ledger", appends=3)
    (live.folder / "coordinator.lock").unlink()  # as a careless person might
    with closing(SqliteLedger.open(live.folder, PLAIN, CLOCK)) as second, closing(live.ledger) as first:
        seq = second.tail().seq
        second.append(make_append("second", seq, b"x", term=live.term))
        with pytest.raises(LedgerFailed, match="expected the ledger to end"):
            first.append(make_append("first", seq, b"y", term=live.term))
        first.append(make_append("first", seq + 1, b"y", term=live.term))
        check_chain(list(second.read()))


def test_a_stale_backup_copied_over_is_refused(live: Live, tmp_path: Path) -> None:
    stale = live.copy(tmp_path / "stale")
    then = len(live.events)
    live.extend(10)
    now = len(live.events)
    live.ledger.close()
    shutil.rmtree(live.folder)
    shutil.copytree(stale, live.folder)
    with pytest.raises(LedgerDamaged, match=f"{now - then} events are missing, seq {then + 1} to {now}"):
        SqliteLedger.open(live.folder, live.options, CLOCK)
    assert len(events_in(live.folder)) == then  # only the copy of the mark outside the folder can tell


def test_another_history_of_the_same_length_is_refused(tmp_path: Path) -> None:
    one = Live(tmp_path / "one", appends=4)
    other = SqliteLedger.open(tmp_path / "other", PLAIN, CLOCK)
    other.append(make_append("x", 0, *[b"y"] * 60, term=one.term))
    one.ledger.close()
    other.close()
    shutil.copy(one.folder / fmt.MARK_NAME, tmp_path / "other" / fmt.MARK_NAME)
    with pytest.raises(LedgerDamaged, match="is not the one"):
        SqliteLedger.open(tmp_path / "other", PLAIN, CLOCK)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    live = Live(tmp_path / "ledger", appends=3)
    count = len(live.events)
    live.ledger.close()
    execute(live.folder, "PRAGMA user_version = 9")
    with pytest.raises(LedgerFailed, match=r"schema 9 .* reading is possible"):
        SqliteLedger.open(live.folder, PLAIN, CLOCK)
    with closing(SqliteLedger.open_readonly(live.folder)) as ledger:
        assert len(list(ledger.read())) == count
    execute(live.folder, "UPDATE about SET min_reader_version = 8")
    with pytest.raises(LedgerFailed, match="wants a reader of at least 8") as raised:
        SqliteLedger.open(live.folder, PLAIN, CLOCK)
    assert "newer release" in raised.value.hint
    with pytest.raises(LedgerFailed, match="wants a reader of at least 8"):
        SqliteLedger.open_readonly(live.folder)
    with pytest.raises(LedgerFailed, match="schema 9"):
        care.plan_repair(live.folder)


def test_an_older_or_foreign_database_is_refused(tmp_path: Path) -> None:
    live = Live(tmp_path / "ledger", appends=3)
    live.ledger.close()
    execute(live.folder, "PRAGMA user_version = 0")
    with pytest.raises(LedgerFailed, match="older than any"):
        SqliteLedger.open(live.folder, PLAIN, CLOCK)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    execute(foreign, "CREATE TABLE recipe (name TEXT)")
    with pytest.raises(LedgerDamaged, match="not a ledger"):
        SqliteLedger.open(foreign, PLAIN, CLOCK)
    (foreign / fmt.DATABASE_NAME).write_text("no database at all " * 100)
    with pytest.raises(LedgerDamaged):
        SqliteLedger.open(foreign, PLAIN, CLOCK)


def test_a_database_that_was_never_finished_is_made(tmp_path: Path) -> None:
    (tmp_path / fmt.DATABASE_NAME).touch()
    assert events_in(tmp_path) == []


def test_damaged_snapshots_give_way_to_older_ones(tmp_path: Path) -> None:
    live = Live(tmp_path / "ledger", appends=6)
    for event in live.events[:5]:
        live.ledger.save_snapshot(Snapshot(event.seq, event.hash, 1, b"state %d" % event.seq))
    files = sorted((live.folder / fmt.SNAPSHOTS_NAME).iterdir())
    assert [int(path.stem) for path in files] == [3, 4, 5]
    chance = random.Random(3)
    for path, expected in zip(reversed(files), (4, 3, None), strict=True):
        flip_bit(path, chance)
        loaded = live.ledger.load_snapshot()
        assert (loaded and loaded.body) == (expected and b"state %d" % expected)
    live.ledger.close()
