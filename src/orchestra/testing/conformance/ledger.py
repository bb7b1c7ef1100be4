"""What a ledger is. A caller derives from `LedgerContract` and says how to make and how to reopen one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from orchestra.errors import BadInput, LedgerConflict, LedgerFailed, OrchestraError
from orchestra.ledger import GENESIS, Append, Appended, Ledger, NewEvent, Snapshot, StoredEvent, Tail, chain_hash

TIME_MS = 1_700_000_000_000


class SteadyClock:
    """A clock that stands still; moved by hand."""

    def __init__(self, now_ms: int = TIME_MS) -> None:
        self.now_ms = now_ms

    def wall_ms(self) -> int:
        """See `Clock.wall_ms`."""
        return self.now_ms

    def steady_ms(self) -> int:
        """See `Clock.steady_ms`."""
        return self.now_ms

    async def sleep_ms(self, duration_ms: int) -> None:
        """Moves the clock on; never suspends."""
        self.now_ms += duration_ms


def make_append(name: str, expected_seq: int, *bodies: bytes, term: int = 0, at_ms: int | None = None) -> Append:
    """Builds an append of the given bodies, one millisecond apart; event n of a ledger comes n milliseconds after `TIME_MS` by default."""
    at_ms = TIME_MS + max(expected_seq, 0) if at_ms is None else at_ms
    return Append(tuple(NewEvent(at_ms + offset, body) for offset, body in enumerate(bodies)), expected_seq, name, term)


def raised_by(call: Callable[[], object]) -> type[OrchestraError] | None:
    """Returns the class of the package's error that a call raises, or None."""
    try:
        call()
    except OrchestraError as exc:
        return type(exc)
    return None


def check_chain(events: list[StoredEvent]) -> None:
    """Asserts that events are numbered from 1 without gaps and chained from the genesis."""
    previous = GENESIS
    for seq, event in enumerate(events, 1):
        assert event.seq == seq
        assert event.hash == chain_hash(previous, seq, event.at_ms, event.body)
        previous = event.hash


class LedgerContract:
    """Every adapter of the `Ledger` port passes these."""

    def make_ledger(self) -> Ledger:
        """Returns a new, empty ledger. Supplied by the caller."""
        raise NotImplementedError

    def reopen(self, ledger: Ledger) -> Ledger:
        """Closes a ledger and opens it again, as a restart would. Supplied by the caller."""
        raise NotImplementedError

    @contextmanager
    def reopened(self, ledger: Ledger) -> Iterator[Ledger]:
        """Gives the ledger after a restart and closes it in the end."""
        with closing(self.reopen(ledger)) as again:
            yield again

    def test_new_ledger_is_empty(self) -> None:
        with closing(self.make_ledger()) as ledger:
            assert ledger.tail() == Tail(0, GENESIS)
            assert list(ledger.read()) == []
            assert list(ledger.read(5)) == []
            assert ledger.find("a") is None
            assert ledger.load_snapshot() is None

    def test_events_are_numbered_densely_and_chained(self) -> None:
        with closing(self.make_ledger()) as ledger:
            first = ledger.append(make_append("a", 0, b"one", b"two"))
            second = ledger.append(make_append("b", 2, b"three", at_ms=TIME_MS + 5))
            events = list(ledger.read())
            check_chain(events)
            assert [event.body for event in events] == [b"one", b"two", b"three"]
            assert [event.at_ms for event in events] == [TIME_MS, TIME_MS + 1, TIME_MS + 5]
            assert first == Appended(1, 2, events[1].hash)
            assert second == Appended(3, 3, events[2].hash)
            assert ledger.tail() == Tail(3, events[2].hash)

    def test_everything_is_there_after_reopening(self) -> None:
        ledger = self.make_ledger()
        term = ledger.claim_term()
        outcome = ledger.append(make_append("a", 0, b"one", b"two", term=term))
        before = list(ledger.read())
        with self.reopened(ledger) as again:
            assert list(again.read()) == before
            assert again.tail() == Tail(2, before[1].hash)
            assert again.find("a") == outcome
            assert again.append(make_append("b", 2, b"three", term=term)).first_seq == 3
            check_chain(list(again.read()))

    def test_wrong_expected_seq_writes_nothing(self) -> None:
        with closing(self.make_ledger()) as ledger:
            assert raised_by(lambda: ledger.append(make_append("early", 1, b"x"))) is LedgerConflict
            ledger.append(make_append("a", 0, b"one"))
            tail = ledger.tail()
            for expected in (0, 2, 100):
                assert raised_by(lambda seq=expected: ledger.append(make_append("b", seq, b"x"))) is LedgerConflict  # type: ignore[misc]
            assert ledger.tail() == tail
            assert ledger.find("b") is None
            assert [event.body for event in ledger.read()] == [b"one"]

    def test_same_id_returns_first_outcome_and_adds_nothing(self) -> None:
        ledger = self.make_ledger()
        request = make_append("a", 0, b"one", b"two")
        first = ledger.append(request)
        ledger.append(make_append("b", 2, b"three"))
        assert ledger.append(request) == first
        assert ledger.append(make_append("a", 3, b"another thing")) == first
        with self.reopened(ledger) as again:
            assert again.append(make_append("a", 3, b"another thing")) == first
            assert again.tail().seq == 3

    def test_same_id_is_answered_in_any_term(self) -> None:
        with closing(self.make_ledger()) as ledger:
            first = ledger.append(make_append("a", 0, b"one"))
            ledger.claim_term()
            assert ledger.append(make_append("a", 0, b"one")) == first

    def test_find_returns_what_append_returned(self) -> None:
        with closing(self.make_ledger()) as ledger:
            outcomes = {}
            for number in range(5):
                name = f"append {number} ü"
                outcomes[name] = ledger.append(make_append(name, ledger.tail().seq, *[b"x"] * (number + 1)))
            assert {name: ledger.find(name) for name in outcomes} == outcomes
            assert ledger.find("append 5 ü") is None

    def test_terms_rise_and_outlive_a_restart(self) -> None:
        ledger = self.make_ledger()
        terms = [ledger.claim_term(), ledger.claim_term()]
        with self.reopened(ledger) as again:
            terms.append(again.claim_term())
            assert terms[0] >= 1
            assert terms == sorted(set(terms))
            assert raised_by(lambda: again.append(make_append("a", 0, b"x", term=terms[1]))) is LedgerConflict
            assert again.append(make_append("b", 0, b"x", term=terms[2])).last_seq == 1

    def test_stale_term_is_refused_and_writes_nothing(self) -> None:
        with closing(self.make_ledger()) as ledger:
            old = ledger.claim_term()
            new = ledger.claim_term()
            assert raised_by(lambda: ledger.append(make_append("a", 0, b"x", term=old))) is LedgerConflict
            assert ledger.find("a") is None
            assert ledger.tail().seq == 0
            ledger.append(make_append("a", 0, b"x", term=new))

    def test_an_append_with_a_higher_term_raises_the_fence(self) -> None:
        with closing(self.make_ledger()) as ledger:
            ledger.append(make_append("a", 0, b"x", term=7))
            assert raised_by(lambda: ledger.append(make_append("b", 1, b"x", term=6))) is LedgerConflict
            assert ledger.claim_term() > 7

    def test_reads_ranges(self) -> None:
        with closing(self.make_ledger()) as ledger:
            ledger.append(make_append("a", 0, *[b"%d" % number for number in range(1, 11)]))
            seqs = [
                [event.seq for event in ledger.read(after, limit)] for after, limit in [(0, 3), (3, 3), (8, 5), (10, 1), (11, None), (0, 0)]
            ]
            assert seqs == [[1, 2, 3], [4, 5, 6], [9, 10], [], [], []]
            assert [event.seq for event in ledger.read(7)] == [8, 9, 10]
            assert list(ledger.read(4, 2)) == list(ledger.read())[4:6]

    def test_reading_goes_on_while_appending(self) -> None:
        with closing(self.make_ledger()) as ledger:
            ledger.append(make_append("a", 0, b"one", b"two"))
            reading = ledger.read()
            assert next(reading).body == b"one"
            ledger.append(make_append("b", 2, b"three"))
            assert next(reading).body == b"two"
            assert [event.seq for event in ledger.read()] == [1, 2, 3]

    def test_bodies_are_any_bytes(self) -> None:
        bodies = [b"", b"\0", bytes(range(256)), b"\xff" * 100_000, "é€😀".encode(), b"{\n}"]
        ledger = self.make_ledger()
        ledger.append(make_append("a", 0, *bodies))
        with self.reopened(ledger) as again:
            assert [event.body for event in again.read()] == bodies

    def test_big_batch(self) -> None:
        with closing(self.make_ledger()) as ledger:
            outcome = ledger.append(make_append("a", 0, *[b"event %d" % number for number in range(20_000)]))
            events = list(ledger.read())
            check_chain(events)
            assert outcome == Appended(1, 20_000, events[-1].hash)

    def test_malformed_appends_are_refused(self) -> None:
        with closing(self.make_ledger()) as ledger:
            ledger.append(make_append("a", 0, b"x", at_ms=TIME_MS))
            wrong = [
                make_append("b", 1),
                make_append("", 1, b"x"),
                make_append("i" * 201, 1, b"x"),
                make_append("line\nbreak", 1, b"x"),
                make_append("b", 1, b"x", at_ms=TIME_MS - 1),
                make_append("b", 1, b"x", at_ms=-1),
                make_append("b", 1, b"x", at_ms=1 << 63),
                Append((NewEvent(TIME_MS + 2, b"x"), NewEvent(TIME_MS + 1, b"y")), 1, "b", 0),
                make_append("b", -1, b"x"),
                make_append("b", 1, b"x", term=-1),
            ]
            assert [raised_by(lambda request=request: ledger.append(request)) for request in wrong] == [BadInput] * len(wrong)  # type: ignore[misc]
            assert ledger.tail().seq == 1
            ledger.append(make_append("b", 1, b"same time", at_ms=TIME_MS))

    def test_snapshots_come_back_newest_first(self) -> None:
        ledger = self.make_ledger()
        assert ledger.load_snapshot() is None
        ledger.append(make_append("a", 0, *[b"x"] * 10))
        events = list(ledger.read())
        for seq in (2, 8, 5):
            ledger.save_snapshot(Snapshot(seq, events[seq - 1].hash, 1, b"state %d" % seq))
        newest = Snapshot(8, events[7].hash, 1, b"state 8")
        assert ledger.load_snapshot() == newest
        with self.reopened(ledger) as again:
            assert again.load_snapshot() == newest
            for seq in (3, 4, 6, 7, 9):
                again.save_snapshot(Snapshot(seq, events[seq - 1].hash, 2, b"\0 state"))
            assert again.load_snapshot() == Snapshot(9, events[8].hash, 2, b"\0 state")

    def test_snapshot_of_another_history_is_not_used(self) -> None:
        with closing(self.make_ledger()) as ledger:
            ledger.append(make_append("a", 0, b"x", b"y"))
            good = Snapshot(1, next(ledger.read()).hash, 1, b"good")
            ledger.save_snapshot(good)
            ledger.save_snapshot(Snapshot(2, b"\1" * 32, 1, b"wrong hash"))
            ledger.save_snapshot(Snapshot(9, b"\2" * 32, 1, b"beyond the end"))
            assert ledger.load_snapshot() == good

    def test_snapshot_of_the_empty_ledger(self) -> None:
        with closing(self.make_ledger()) as ledger:
            ledger.save_snapshot(Snapshot(0, GENESIS, 1, b""))
            assert ledger.load_snapshot() == Snapshot(0, GENESIS, 1, b"")

    def test_close_is_idempotent_and_final(self) -> None:
        ledger = self.make_ledger()
        ledger.append(make_append("a", 0, b"x"))
        ledger.close()
        ledger.close()
        calls: list[Callable[[], object]] = [
            lambda: ledger.append(make_append("b", 1, b"x")),
            lambda: ledger.find("a"),
            ledger.tail,
            lambda: list(ledger.read()),
            ledger.claim_term,
            lambda: ledger.save_snapshot(Snapshot(0, GENESIS, 1, b"")),
            ledger.load_snapshot,
        ]
        assert [raised_by(call) for call in calls] == [LedgerFailed] * len(calls)

    def test_of_two_threads_with_the_same_expectation_one_wins(self) -> None:
        rounds, outcomes = 30, dict[str, Appended | None]()
        with closing(self.make_ledger()) as ledger:
            gate = threading.Barrier(2)

            def race(who: str) -> None:
                for number in range(rounds):
                    gate.wait(30)
                    name = f"{who}{number}"
                    try:
                        outcomes[name] = ledger.append(make_append(name, number, name.encode()))
                    except LedgerConflict:
                        outcomes[name] = None

            threads = [threading.Thread(target=race, args=(who,)) for who in "ab"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            events = list(ledger.read())
            check_chain(events)
            winners = [name for name, outcome in outcomes.items() if outcome is not None]
            assert len(outcomes) == 2 * rounds
            assert sorted(name.encode() for name in winners) == sorted(event.body for event in events)
            assert [sum(name[1:] == str(number) for name in winners) for number in range(rounds)] == [1] * rounds
