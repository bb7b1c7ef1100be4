"""What a person does to an SQLite ledger: repair says first what it loses, archives are checked on both ways, exports are whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from orchestra.errors import BadInput, LedgerFailed, LedgerLocked
from orchestra.ledgers import care
from orchestra.ledgers import sqlite_format as fmt
from orchestra.ledgers.sqlite import SqliteLedger, SqliteOptions
from orchestra.testing.conformance.ledger import make_append
from tests.integration.sqlite_live import CLOCK, PLAIN, Live, events_in, execute


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    made = Live(tmp_path / "ledger", SqliteOptions(mark_copy=tmp_path / "state" / "tail.mark"))
    yield made
    made.ledger.close()


def test_repair_says_what_is_lost_and_does_it(live: Live, tmp_path: Path) -> None:
    original = live.events
    folder = live.copy(tmp_path / "damaged")
    log = folder / (fmt.DATABASE_NAME + "-wal")
    os.truncate(log, log.stat().st_size // 2)
    plan = care.plan_repair(folder)
    keep = plan.keep.seq
    assert 0 < keep < len(original)
    assert (plan.lost_first, plan.lost_last, plan.lost_count) == (keep + 1, len(original), len(original) - keep)
    assert plan.keep.at_ms == original[keep - 1].at_ms
    assert f"loses {len(original) - keep} events, seq {keep + 1} to {len(original)}" in str(plan)
    with pytest.raises(BadInput, match="loses"):
        care.repair(folder, plan, False, clock=CLOCK)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}
    aside = care.repair(folder, plan, True, clock=CLOCK)
    assert aside == tmp_path / "damaged.damaged-20231114T221320Z"
    assert {path.name: path.read_bytes() for path in aside.iterdir() if not path.name.endswith("-shm")} == {
        name: content for name, content in before.items() if name != "coordinator.lock"
    }
    assert events_in(folder) == original[:keep]
    assert care.verify(folder).ok
    with closing(SqliteLedger.open(folder, PLAIN, CLOCK)) as ledger:
        kept = {name: outcome for name, outcome in live.outcomes.items() if outcome.last_seq <= keep}
        assert {name: ledger.find(name) for name in kept} == kept
        assert ledger.find(f"append-{len(kept)}") is None
        assert ledger.claim_term() > live.term + 1
    assert care.repair(folder, care.plan_repair(folder), True, clock=CLOCK) is None


def test_repair_never_cuts_an_append_in_half(tmp_path: Path) -> None:
    live = Live(tmp_path / "ledger", appends=40)
    original = live.events
    live.ledger.close()
    middle = live.outcomes["append-24"]  # five events
    execute(live.folder, f"UPDATE event SET body = x'00' WHERE seq = {middle.first_seq + 2}")
    plan = care.plan_repair(live.folder)
    assert plan.keep.seq == middle.first_seq - 1
    care.repair(live.folder, plan, True, clock=CLOCK)
    assert events_in(live.folder) == original[: middle.first_seq - 1]


def test_repair_keeps_events_whose_append_records_are_lost(tmp_path: Path) -> None:
    live = Live(tmp_path / "ledger", appends=40)
    original = live.events
    live.ledger.close()
    execute(live.folder, "DELETE FROM append_id WHERE first_seq > 20 AND last_seq < 50", "UPDATE term SET term = 500")
    plan = care.plan_repair(live.folder)
    assert (plan.keep.seq, plan.lost_count) == (len(original), 0)
    assert plan.keep.term == live.term + 1
    care.repair(live.folder, plan, True, clock=CLOCK)
    assert care.verify(live.folder).ok
    assert events_in(live.folder) == original


def test_repair_refuses_a_stale_plan_and_a_held_folder(live: Live, tmp_path: Path) -> None:
    folder = live.copy(tmp_path / "damaged")
    log = folder / (fmt.DATABASE_NAME + "-wal")
    os.truncate(log, log.stat().st_size // 2)
    plan = care.plan_repair(folder)
    os.truncate(log, log.stat().st_size // 2)
    with pytest.raises(LedgerFailed, match="has changed"):
        care.repair(folder, plan, True, clock=CLOCK)
    with pytest.raises(LedgerLocked):
        care.repair(live.folder, plan, True, clock=CLOCK)


def test_backup_while_writing_restores_the_same_chain(live: Live, tmp_path: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            live.extend(1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        manifests = [care.backup(live.folder, tmp_path / f"backup{number}.tar.gz", live.options) for number in range(3)]
    finally:
        stop.set()
        writer.join()
    original = live.events
    assert care.verify(live.folder, live.options).ok
    assert manifests[0].seq <= manifests[1].seq <= manifests[2].seq <= len(original)
    for number, manifest in enumerate(manifests):
        folder = tmp_path / f"restored{number}"
        assert care.restore(tmp_path / f"backup{number}.tar.gz", folder, force=False, clock=CLOCK) is None
        assert events_in(folder) == original[: manifest.seq]
        assert original[manifest.seq - 1].hash.hex() == manifest.hash
        assert care.verify(folder).ok
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_restore_refuses_what_is_there_unless_forced(live: Live, tmp_path: Path) -> None:
    care.backup(live.folder, tmp_path / "b.tar.gz", live.options)
    count = len(live.events)
    with pytest.raises(LedgerLocked):
        care.restore(tmp_path / "b.tar.gz", live.folder, force=True, clock=CLOCK)
    live.extend(5)
    live.ledger.close()
    with pytest.raises(BadInput, match="not empty"):
        care.restore(tmp_path / "b.tar.gz", live.folder, force=False, clock=CLOCK)
    aside = care.restore(tmp_path / "b.tar.gz", live.folder, force=True, clock=CLOCK, options=live.options)
    assert aside is not None
    assert (aside / fmt.DATABASE_NAME).exists()
    assert len(events_in(live.folder, live.options)) == count
    with closing(SqliteLedger.open(live.folder, live.options, CLOCK)) as ledger:
        assert ledger.claim_term() > live.term + 1


def test_restore_refuses_archives_that_are_not_ours(live: Live, tmp_path: Path) -> None:
    good, folder = tmp_path / "good.tar.gz", tmp_path / "restored"
    care.backup(live.folder, good, live.options)
    staging = tmp_path / "staging"
    shutil.unpack_archive(good, staging)
    names = ["manifest.json", "ledger.db", "tail.mark"]

    def pack(name: str, *members: str) -> Path:
        subprocess.run(["tar", "-C", staging, "-P", "-czf", tmp_path / name, *members], check=True)
        return tmp_path / name

    (staging / "link").symlink_to("/etc/passwd")
    (tmp_path / "outside").write_text("x")
    bad = [pack("extra.tar.gz", *names, "../outside"), pack("order.tar.gz", *reversed(names)), pack("less.tar.gz", *names[:2])]
    bad += [pack("link.tar.gz", "--transform=s/^link$/manifest.json/", "link", *names[1:])]
    flipped = tmp_path / "flipped.tar.gz"
    flipped.write_bytes(good.read_bytes()[:-2000])
    (tmp_path / "text.tar.gz").write_text("no archive")
    bad += [flipped, tmp_path / "text.tar.gz", tmp_path / "nowhere.tar.gz"]
    with (staging / "ledger.db").open("r+b") as file:
        file.seek(9000)
        file.write(b"changed")
    bad += [pack("changed.tar.gz", *names)]
    for archive in bad:
        with pytest.raises(BadInput):
            care.restore(archive, folder, force=False, clock=CLOCK)
    assert [path.name for path in folder.iterdir()] == ["coordinator.lock"]


def test_export_writes_every_event_as_a_line(tmp_path: Path) -> None:
    live = Live(tmp_path / "ledger", appends=6)
    live.ledger.append(make_append("odd", live.ledger.tail().seq, b"\xff\0", b'{\n "a": 1.50 }', b"", term=live.term))
    events = live.events
    assert care.export(live.folder, tmp_path / "out.jsonl") == len(events)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(line["seq"], line["at_ms"], line["hash"]) for line in lines] == [(e.seq, e.at_ms, e.hash.hex()) for e in events]
    assert [line["event"] for line in lines[:-3]] == [json.loads(event.body) for event in events[:-3]]
    assert lines[-3]["event_base64"] == "/wA="
    assert lines[-2]["event"] == {"a": 1.5}
    assert lines[-1]["event_base64"] == ""
    live.ledger.close()
