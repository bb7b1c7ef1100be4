"""The pure parts of the ledger: hashes that must never change, what an append may be, marks, snapshots, mounts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.ledger import GENESIS, NewEvent, Snapshot, StoredEvent, Tail, chain_hash, chained, event_crc
from orchestra.ledgers.export import export_line
from orchestra.ledgers.folder import NETWORK_FILE_SYSTEMS, file_system_of
from orchestra.ledgers.marks import EMPTY, Mark, MarkFile, decode_mark, encode_mark, read_mark, reset_mark
from orchestra.ledgers.snapshots import decode_snapshot, encode_snapshot
from orchestra.ledgers.sqlite_format import append_crc, term_crc
from orchestra.ledgers.sqlite_read import check_rows

INT64 = st.integers(0, (1 << 63) - 1)
MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:30 / /home rw shared:2 - nfs4 server:/home rw
31 30 0:31 / /home/local\\040disk rw - xfs /dev/vdb rw
32 22 0:32 / /home/local\\040disk/far rw master:3 - fuse.sshfs host:/ rw
"""


def test_hashes_of_stored_ledgers_do_not_change() -> None:
    first = chain_hash(GENESIS, 1, 1_700_000_000_000, b"one")
    assert first.hex() == "150e6302f61ddb443302b03ed1da8054ce45d4800682d92024427d55f5a4edd3"
    assert chain_hash(first, 2, 1_700_000_000_001, b"").hex() == "15e874ed728235e81cce9d41e401efe09ae3a7f5f99d18537996545c392317db"
    assert event_crc(1, b"one") == 2075061446
    assert append_crc(1, 2, "append-ü") == 3517064455
    assert term_crc(7) == 4215687882


def test_chained_numbers_after_the_tail() -> None:
    tail = Tail(4, b"\7" * 32)
    events = chained([NewEvent(10, b"a"), NewEvent(11, b"b")], tail)
    assert [(event.seq, event.at_ms, event.body) for event in events] == [(5, 10, b"a"), (6, 11, b"b")]
    assert events[1].hash == chain_hash(chain_hash(tail.hash, 5, 10, b"a"), 6, 11, b"b")
    assert chained([], tail) == []


@given(st.lists(st.tuples(st.integers(0, 1 << 40), st.binary(max_size=50)), max_size=20), st.integers(0, 1 << 50))
def test_checked_rows_agree_with_the_port(pairs: list[tuple[int, bytes]], after: int) -> None:
    events = chained([NewEvent(*pair) for pair in pairs], Tail(after, GENESIS))
    rows = [(e.seq, e.at_ms, e.body, event_crc(e.seq, e.body), e.hash) for e in events]
    assert check_rows(rows, after, GENESIS).events == events
    assert check_rows(rows, after, GENESIS).problem == ""


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=8), st.data())
def test_any_changed_field_is_noticed_at_its_row(bodies: list[bytes], data: st.DataObject) -> None:
    events = chained([NewEvent(100, body) for body in bodies], Tail(0, GENESIS))
    rows: list[tuple[int, int, bytes, int, bytes]] = [(e.seq, e.at_ms, e.body, event_crc(e.seq, e.body), e.hash) for e in events]
    at, field = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.integers(0, 4))
    wrong = data.draw(st.sampled_from([None, -1, 1.5, "text", b"other bytes"]))
    broken = [*rows[:at], (*rows[at][:field], wrong, *rows[at][field + 1 :]), *rows[at + 1 :]]
    found = check_rows(broken, 0, GENESIS)  # type: ignore[arg-type]
    assert found.events == events[:at]
    assert found.problem


def test_a_missing_row_is_noticed() -> None:
    events = chained([NewEvent(1, b"a"), NewEvent(2, b"b"), NewEvent(3, b"c")], Tail(0, GENESIS))
    rows = [(e.seq, e.at_ms, e.body, event_crc(e.seq, e.body), e.hash) for e in events]
    assert check_rows([rows[0], rows[2]], 0, GENESIS).problem == "event 2 is missing"


@given(INT64, INT64, INT64, st.binary(min_size=32, max_size=32))
def test_marks_come_back(seq: int, at_ms: int, term: int, digest: bytes) -> None:
    mark = Mark(seq, at_ms, term, digest)
    assert decode_mark(encode_mark(mark)) == mark
    assert decode_mark(encode_mark(mark) + b"\0" * 100) == mark


def test_any_flipped_bit_of_a_mark_is_noticed() -> None:
    data = encode_mark(Mark(5, 1, 2, GENESIS))
    for bit in range(8 * len(data)):
        spoilt = bytearray(data)
        spoilt[bit // 8] ^= 1 << bit % 8
        assert decode_mark(bytes(spoilt)) is None


def test_mark_slots_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "tail.mark"
    assert read_mark(path) is None
    reset_mark(path, EMPTY)
    for opening in range(2):
        file = MarkFile(path)
        for number in range(1, 6):
            seq = opening * 5 + number
            file.write(Mark(seq, 0, 0, GENESIS))
            kept = {(path.read_bytes()[at + 8 : at + 16]) for at in (0, 4096)}
            assert kept == {seq.to_bytes(8), (seq - 1).to_bytes(8)}
            assert read_mark(path) == Mark(seq, 0, 0, GENESIS)
        file.sync()
        file.close()
        file.close()
    reset_mark(path, Mark(3, 0, 9, GENESIS))
    assert read_mark(path) == Mark(3, 0, 9, GENESIS)


@given(INT64, INT64, st.binary(max_size=100))
def test_snapshots_come_back(seq: int, number: int, body: bytes) -> None:
    snapshot = Snapshot(seq, b"\5" * 32, number, body)
    data = encode_snapshot(snapshot)
    assert decode_snapshot(data) == snapshot
    assert decode_snapshot(data[:-1]) is None
    assert decode_snapshot(data + b"x") is None


@pytest.mark.parametrize(
    "path,kind",
    [
        ("/var/lib", "ext4"),
        ("/home/me", "nfs4"),
        ("/homes", "ext4"),
        ("/home/local disk/x", "xfs"),
        ("/home/local disk/far/away", "fuse.sshfs"),
    ],
)
def test_the_innermost_mount_decides(path: str, kind: str) -> None:
    assert file_system_of(Path(path), MOUNTS) == kind
    assert (kind in NETWORK_FILE_SYSTEMS) == (kind not in ("ext4", "xfs"))


def test_a_mount_over_a_mount_hides_it() -> None:
    assert file_system_of(Path("/home/me"), MOUNTS + "40 30 0:40 / /home rw - tmpfs tmpfs rw\n") == "tmpfs"
    assert file_system_of(Path("/x"), "nonsense\n") == ""


def test_export_lines_are_json_whatever_the_body() -> None:
    line = export_line(StoredEvent(1, 2, b'{"a": [1,\n 2]}', b"\1" * 32))
    assert line == b'{"seq":1,"at_ms":2,"hash":"' + b"01" * 32 + b'","event":{"a":[1,2]}}\n'
    assert b'"event_base64":"e3s="' in export_line(StoredEvent(1, 2, b"{{", GENESIS))
