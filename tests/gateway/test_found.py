"""What was found by looking for it: each a fault that the gateway had, and has no more."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
from pathlib import Path

import pytest

from orchestra.clocks.system import SystemClock
from orchestra.errors import PortFailed
from orchestra.gateway import journal as journal_module
from orchestra.gateway.config import AccountPart, GatewayConfig, UpstreamPart
from orchestra.gateway.journal import Journal
from orchestra.gateway.limiter import Limiter
from orchestra.gateway.upstream import TOKEN
from orchestra.metering import books as books_module
from orchestra.metering.books import Books, BudgetSet, Closed, Opened, Who
from orchestra.metering.formulas import FORMULAS, REQUESTS
from orchestra.metering.group import Group
from orchestra.metering.lane import Crowd, Lane, Ticket
from orchestra.metering.usage import Usage
from orchestra.testing.upstream import JSON_TYPE, SSE_TYPE, Answer, Seen, Upstream, anthropic_chunks, anthropic_json, refusal
from tests.gateway.support import CANARY, CLOCK, asking, staged
from tests.gateway.test_keys import put
from tests.gateway.virtual import VirtualClock, in_virtual_time

VIRTUAL = VirtualClock()
WELL = anthropic_json(1, 2)


# ---- keys ---------------------------------------------------------------------------------------------------------------------


async def test_a_turn_that_waited_over_a_reload_has_the_key_of_the_new_address(tmp_path: Path) -> None:
    """The key of the provider before would otherwise go to the one that is configured now."""
    limits = {"limits": {"default": {"requests": 1}}}
    accounts = {"main": {"keys": [{"env": "KEY_A"}], **limits}}
    environ = {"KEY_A": "sk-of-the-first", "KEY_B": "sk-of-the-second"}
    second = Upstream(lambda seen, n: WELL, CLOCK)
    async with staged(tmp_path, lambda seen, n: WELL, environ, upstream={"accounts": accounts}) as stage:
        try:
            assert (await stage.post())[0] == 200
            waiting = asyncio.create_task(stage.post())
            await stage.until(lambda: any(lane.waiting for lane in stage.gateway.desk.limiter.lanes.values()))
            config = json.loads((tmp_path / "gateway.json").read_text())
            account = {"keys": [{"env": "KEY_B"}], "limits": {"default": {"requests": 100_000}}}
            config["upstreams"]["api"] |= {"base_url": await second.start(), "accounts": {"main": account}}
            (tmp_path / "gateway.json").write_text(json.dumps(config))
            await stage.admin("reload")
            assert (await waiting)[0] == 200
            assert [seen.header("x-api-key") for seen in stage.upstream.seen] == ["sk-of-the-first"]
            assert [seen.header("x-api-key") for seen in second.seen] == ["sk-of-the-second"]
        finally:
            await second.stop()


async def test_a_turn_whose_account_was_taken_away_looks_for_another(tmp_path: Path) -> None:
    accounts = {"main": {"keys": [{"env": "KEY_A"}], "limits": {"default": {"requests": 1}}}}
    async with staged(tmp_path, lambda seen, n: WELL, {"KEY_A": "sk-a", "KEY_B": "sk-b"}, upstream={"accounts": accounts}) as stage:
        assert (await stage.post())[0] == 200
        waiting = asyncio.create_task(stage.post())
        await stage.until(lambda: any(lane.waiting for lane in stage.gateway.desk.limiter.lanes.values()))
        config = json.loads((tmp_path / "gateway.json").read_text())
        config["upstreams"]["api"]["accounts"] = {"other": {"keys": [{"env": "KEY_B"}]}}
        (tmp_path / "gateway.json").write_text(json.dumps(config))
        await stage.admin("reload")
        assert (await waiting)[0] == 200
        assert stage.upstream.seen[-1].header("x-api-key") == "sk-b"
        assert all(lane.group.ramp.in_flight == lane.waiting == 0 for lane in stage.gateway.desk.limiter.lanes.values())


def test_an_upstream_that_is_taken_away_while_its_account_is_parked(tmp_path: Path) -> None:
    async def scene() -> None:
        spent = refusal(429, "rate_limit_error", ("retry-after", "60"), message="usage limit")
        async with staged(tmp_path, lambda seen, n: spent, clock=VIRTUAL) as stage:
            assert (await stage.post())[0] == 429
            waiting = asyncio.create_task(stage.post())
            await stage.until(lambda: stage.gateway.desk.open == 1)
            text = (tmp_path / "gateway.json").read_text()
            (tmp_path / "gateway.json").write_text(text.replace('"api"', '"other"'))
            await stage.admin("reload")
            status, body, _ = await waiting
            assert (status, b"no longer configured" in body) == (529, True)

    in_virtual_time(scene())


def test_a_changed_key_file_is_taken_into_use_without_being_told(tmp_path: Path) -> None:
    """The old key is still good, so that no refusal points at the change; a file that is being written changes nothing."""
    key = put(tmp_path / "key", "sk-old")

    async def scene() -> None:
        upstream = {"accounts": {"main": {"keys": [{"file": "key"}]}}}
        async with staged(tmp_path, lambda seen, n: WELL, upstream=upstream, clock=VIRTUAL) as stage:
            assert (await stage.post())[0] == 200
            for text in ("", "two words"):
                put(key, text)
                await VIRTUAL.sleep_ms(5_000)
                assert (await stage.post())[0] == 200
            put(key, "sk-new")
            await VIRTUAL.sleep_ms(5_000)
            assert (await stage.post())[0] == 200
            assert [seen.header("x-api-key") for seen in stage.upstream.seen] == ["sk-old"] * 3 + ["sk-new"]
            events = (await stage.admin("events"))["events"]
            assert [each["kind"] for each in events] == ["key_changed"]
            assert "sk-" not in json.dumps(events)

    in_virtual_time(scene())


def test_a_key_that_was_refused_for_a_while_is_tried_again(tmp_path: Path) -> None:
    """A provider that refuses good keys for a minute does not end all work until somebody looks."""

    def script(seen: Seen, n: int) -> Answer:
        return refusal(401, "authentication_error") if seen.at_ms < 150_000 else WELL

    async def scene() -> None:
        async with staged(tmp_path, script, clock=VIRTUAL) as stage:
            statuses: list[int] = []
            while statuses[-1:] != [200]:
                statuses.append((await stage.post())[0])
                await VIRTUAL.sleep_ms(10_000)
                assert len(statuses) < 40
            assert set(statuses[:-1]) == {529}
            assert VIRTUAL.steady_ms() < 240_000
            assert len(stage.upstream.seen) <= 5, "and the provider is not asked again each time"

    in_virtual_time(scene())


async def test_many_refusals_at_once_read_the_place_of_a_key_once(tmp_path: Path) -> None:
    count = tmp_path / "count"
    program = ["/bin/sh", "-c", f"echo x >> {count}; echo sk-$(wc -l < {count})"]
    gate = asyncio.Event()

    async def script(seen: Seen, n: int) -> Answer:
        if seen.header("x-api-key") != "sk-1":
            return WELL
        if stage_open() == 20:
            gate.set()
        await gate.wait()
        return refusal(401, "authentication_error")

    def stage_open() -> int:
        return stage.upstream.open

    upstream = {"accounts": {"main": {"keys": [{"command": program}]}}}
    async with staged(tmp_path, script, upstream=upstream, bounds={"agent_in_flight": 100}) as stage:
        found = await asyncio.gather(*(stage.post() for _ in range(20)))
        assert [status for status, _, _ in found] == [200] * 20
        assert count.read_text() == "x\n" * 2, "once at the start, once when it was refused"


@pytest.mark.parametrize("packed", [False, True])
async def test_a_key_that_the_provider_repeats_in_an_error_is_struck_out(tmp_path: Path, packed: bool) -> None:
    def script(seen: Seen, n: int) -> Answer:
        body = json.dumps({"error": {"message": f"no such header: {seen.header('x-api-key')}"}}).encode()
        echo = ("X-Echo", f"key={seen.header('x-api-key')}")
        encoding = (("Content-Encoding", "gzip"),) if packed else ()
        return Answer(400, (JSON_TYPE, echo, *encoding), gzip.compress(body) if packed else body)

    async with staged(tmp_path, script) as stage:
        status, body, headers = await stage.post()
        assert status == 400
        assert b"no such header: ***" in body
        assert CANARY not in str(headers) + body.decode()


# ---- what the provider says ------------------------------------------------------------------------------------------------------


async def test_a_refusal_in_compressed_words_is_understood(tmp_path: Path) -> None:
    body = gzip.compress(b'{"error":{"code":"insufficient_quota","message":"You exceeded your current quota"}}')
    answer = Answer(429, (JSON_TYPE, ("Content-Encoding", "gzip")), body)
    async with staged(tmp_path, lambda seen, n: answer) as stage:
        status, given, headers = await stage.post()
        assert (status, headers["x-should-retry"], headers["content-encoding"], len(stage.upstream.seen)) == (429, "false", "gzip", 1)
        assert b"insufficient_quota" in given
        assert "account_parked" in await stage.kinds()


def test_chance_refusals_do_not_bring_all_down_to_one_at_a_time() -> None:
    """Three of ten are refused, by chance and for ever: the level stays where work goes on, and a storm afterwards is forgotten in a few rounds."""
    group = Group(FORMULAS["anthropic"], {}, 256, 0)
    held = [group.take({REQUESTS: 1}, 0) for _ in range(50)]
    lowest = 50
    for n in range(2_000):
        each = held.pop(0)
        if n % 10 in {2, 5, 8}:
            group.slow_down()
            group.settle_refused(each, n)
        else:
            group.went_well()
            group.settle(each, Usage(), n)
        while group.ramp.free and len(held) < 50:
            held.append(group.take({REQUESTS: 1}, n))
        lowest = min(lowest, group.ramp.allowed)
    assert lowest >= 8
    for each in held:
        group.close_until(3_000, 2_000)
        group.settle_refused(each, 2_000)
    for n in range(20):
        each = group.take({REQUESTS: 1}, 3_000 + n)
        group.close_until(3_001 + n, 3_000 + n)
        group.settle_refused(each, 3_000 + n)
    assert group.ramp.allowed == 1
    for _ in range(1 + 2 + 4 + 8):
        group.went_well()
    assert group.ramp.allowed >= 8


def test_a_turn_for_nothing_costs_nothing_in_the_queue() -> None:
    lane = Lane(Group(FORMULAS["anthropic"], {REQUESTS: 60}, 1, 0), Crowd(8), waiting_max=10)
    unlucky, lucky = (Ticket(name, 3, {REQUESTS: 1}, 1) for name in ("unlucky", "lucky"))
    held = lane.offer(unlucky, 0)
    assert held is not None
    assert lane.offer(lucky, 0) is None
    lane.group.settle_unsent(held, 0)
    lane.release(unlucky, served=False)
    again = Ticket("unlucky", 3, {REQUESTS: 1}, 1)
    assert lane.offer(again, 0) is None
    ((first, first_held),) = lane.admit(0)
    lane.group.settle_unsent(first_held, 0)
    lane.release(first)
    ((second, _),) = lane.admit(0)
    assert {first.flow, second.flow} == {"unlucky", "lucky"}
    assert first.price == second.price > 0


# ---- requests --------------------------------------------------------------------------------------------------------------------


async def test_a_token_is_sent_on_in_no_header_and_no_address(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: WELL) as stage:
        assert TOKEN.fullmatch(stage.token)
        assert (await stage.post(x_debug=f"token {stage.token}", x_other="orc-hestra"))[0] == 200
        (seen,) = stage.upstream.seen
        assert (stage.token in str(seen), seen.header("x-other")) == (False, "orc-hestra")
        assert (await stage.post(path=f"/v1/messages?beta={stage.token}"))[0] == 400
        assert len(stage.upstream.seen) == 1


async def test_two_members_and_two_encodings_are_refused(tmp_path: Path) -> None:
    """Only what one parser reads in one way goes on."""
    body = gzip.compress(json.dumps(asking()).encode())
    async with staged(tmp_path, lambda seen, n: WELL) as stage:
        assert (await stage.post(body + gzip.compress(b" "), content_encoding="gzip"))[0] == 400
        names = [("x-api-key", stage.token), ("content-encoding", "gzip"), ("content-encoding", "identity")]
        async with stage.http.post(stage.url + "/v1/messages", data=body, headers=names) as response:
            assert response.status == 415
        assert stage.upstream.seen == []


async def test_an_offer_of_http_2_is_not_taken_and_the_request_is_answered(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: WELL) as stage:
        status, _, _ = await stage.post(connection="Upgrade, HTTP2-Settings", upgrade="h2c", http2_settings="AAMAAABkAAQAoAAAAAIAAAAA")
        assert status == 200
        assert not {"upgrade", "http2-settings", "connection"} & {name.lower() for name, _ in stage.upstream.seen[0].headers}


async def test_strangers_do_not_share_the_bound_of_one_agent(tmp_path: Path) -> None:
    arrived = asyncio.Event()

    async def script(seen: Seen, n: int) -> Answer:
        if stage.upstream.open == 3:
            arrived.set()
        await arrived.wait()
        return WELL

    upstream = {"accounts": {}, "pass_through": True, "anonymous": True}
    async with staged(tmp_path, script, upstream=upstream, bounds={"agent_in_flight": 1}) as stage:
        found = await asyncio.gather(*(stage.post(token=f"sk-login-{n}") for n in range(3)))
        assert [status for status, _, _ in found] == [200] * 3


# ---- what is kept ----------------------------------------------------------------------------------------------------------------


async def test_a_limit_that_is_taken_out_of_the_file_is_gone_after_a_reload(tmp_path: Path) -> None:
    accounts = {"main": {"keys": [{"env": "KEY_A"}], "limits": {"default": {"requests": 1, "tokens": 100_000}}}}
    async with staged(tmp_path, lambda seen, n: WELL, upstream={"accounts": accounts}) as stage:
        assert (await stage.post())[0] == 200
        waiting = asyncio.create_task(stage.post())
        await stage.until(lambda: any(lane.waiting for lane in stage.gateway.desk.limiter.lanes.values()))
        text = (tmp_path / "gateway.json").read_text()
        (tmp_path / "gateway.json").write_text(text.replace('"requests": 1, ', ""))
        await stage.admin("reload")
        assert (await waiting)[0] == 200
        assert [each["name"] for each in (await stage.admin("limits"))["lanes"][0]["limits"]] == ["tokens"]


async def test_names_of_models_that_are_made_up_take_no_lane_from_real_ones(tmp_path: Path) -> None:
    """Idle lanes make room; those that are used or have limits of their own stay."""
    part = UpstreamPart(kind="openai", base_url="https://x", accounts={"main": AccountPart(keys=(), limits={"gpt-5": {"requests": 7}})})
    limiter = Limiter(GatewayConfig(upstreams={"api": part}), SystemClock())
    kept = limiter.place("api", "main", "gpt-5")
    busy = limiter.place("api", "main", "busy")
    limiter.lane(kept)
    held = await limiter.acquire(busy, Ticket("a", 3, {REQUESTS: 1}, 1), 1_000)
    for number in range(3_000):
        limiter.lane(limiter.place("api", "main", f"made-up-{number}"))
    assert len(limiter.lanes) <= 501
    assert {kept, busy} <= set(limiter.lanes)
    assert limiter.place("api", "main", "gpt-6").model_class == "gpt-6"
    assert held.open


def test_what_is_used_is_not_what_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that works on and on keeps its account, however many others came and went."""
    monkeypatch.setitem(books_module.NAMES_MAX, "agent", 50)
    monkeypatch.setitem(books_module.NAMES_MAX, "task", 50)
    books = Books()
    for number in range(500):
        agent = "steady" if number % 10 == 0 else f"agent-{number}"
        books.apply(Opened(number + 1, 0, Who("a", f"task-{number}", agent), "api", "main", "m", 10, Usage()))
        books.apply(Closed(number + 1, 0, 200, Usage(), 10))
        books.apply(BudgetSet("task", f"task-{number}", 5))
    assert books.settled("agent", "steady") == 500
    assert (len(books.state.totals["agent"]), len(books.state.budgets["task"])) == (50, 50)
    assert books.state.reserved["task"] == {}


def journal_in(folder: Path) -> Journal:
    made = Journal(folder, Books(), SystemClock())
    made.open()
    return made


async def test_large_books_are_not_written_anew_with_each_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "GROWN_BYTES", 20_000)
    journal = journal_in(tmp_path)
    for number in range(1_000):
        journal.write(BudgetSet("task", f"task-{number}", 7))
    await journal.close()
    journal = journal_in(tmp_path)
    assert (tmp_path / "journal.jsonl").stat().st_size > 10_000
    monkeypatch.setattr(journal_module, "GROWN_BYTES", 1_000)
    await journal.close()
    journal = journal_in(tmp_path)
    began = (tmp_path / "journal.jsonl").stat().st_ino
    for _ in range(5):
        journal.write(BudgetSet("task", "task-1", 8))
    assert began == (tmp_path / "journal.jsonl").stat().st_ino
    await journal.close()


async def test_a_file_that_cannot_be_begun_anew_grows_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is in the file and in the books, so nobody is told that it is not."""
    monkeypatch.setattr(journal_module, "GROWN_BYTES", 500)
    journal = journal_in(tmp_path)
    (tmp_path / ".journal.jsonl.new").mkdir()
    for path in ("write_atomically",):
        monkeypatch.setattr(journal_module, path, _no_room)
    for number in range(50):
        journal.write(BudgetSet("task", f"task-{number}", 7))
    await journal.close()
    monkeypatch.undo()
    assert len(journal_in(tmp_path).books.state.budgets["task"]) == 50


def _no_room(*_: object, **__: object) -> None:
    raise OSError(28, "no room")


@pytest.mark.parametrize("damage", [0, 12, 30])
async def test_books_whose_head_is_damaged_are_refused(tmp_path: Path, damage: int) -> None:
    """Everything up to the last start is in that line; without it budgets would begin from nothing."""
    journal = journal_in(tmp_path)
    journal.write(BudgetSet("task", "task-1", 7))
    await journal.close()
    path = tmp_path / "journal.jsonl"
    text = bytearray(path.read_bytes())
    text[damage] ^= 1
    path.write_bytes(text)
    with pytest.raises(PortFailed) as refused:
        journal_in(tmp_path)
    assert "move the file away" in str(refused.value.hint)
    path.rename(tmp_path / "damaged")
    await journal_in(tmp_path).close()


async def test_a_disk_that_is_full_in_the_middle_of_a_stream_cuts_it_with_words(tmp_path: Path) -> None:
    """It costs more than was reserved, and that cannot be written down; a second answer into the first would be worse."""
    kept: list[int | None] = []

    async def fill() -> None:
        journal = stage.gateway.journal
        if not kept:
            kept.append(journal._file)
            journal._file = os.open("/dev/full", os.O_WRONLY)

    answer = Answer(headers=(SSE_TYPE,), chunks=anthropic_chunks(10, 9_000, ["x" * 800] * 20), after_each=fill)
    async with staged(tmp_path, lambda seen, n: answer) as stage:
        status, body, _ = await stage.post(asking(stream=True))
        full, stage.gateway.journal._file = stage.gateway.journal._file, kept[0]
        assert full is not None
        os.close(full)
        last = body.strip().rpartition(b"\n\n")[2]
        assert (status, b"the books cannot be written" in last, body.count(b"HTTP/1.1")) == (200, True, 0)
        assert (await stage.totals())["requests"] == 0
        assert (await stage.post())[0] == 200
        totals = await stage.totals()
        assert (totals["requests"], totals["reserved_usd_micros"]) == (2, 0), "what could not be settled is settled later"


async def test_a_disk_that_failed_is_told_by_health(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: WELL) as stage:
        journal = stage.gateway.journal
        reading, writing = os.pipe()
        kept, journal._file = journal._file, writing
        assert (await stage.post())[0] == 200
        await stage.until(lambda: journal.broken != "")
        health = await stage.admin("health")
        assert (health["healthy"], health["journal_broken"]) == (False, "Invalid argument")
        assert (await stage.post())[0] == 529
        os.close(reading)
        os.close(writing)
        journal._file = kept


def test_the_gateway_has_no_more_open_files_after_a_thousand_clients_went_away(tmp_path: Path) -> None:
    """Neither lanes nor tasks nor sockets are left of those who go away at any moment: in the queue, before the answer, in the middle of it."""

    async def scene() -> None:
        slow = Answer(WELL.status, WELL.headers, WELL.body, wait_ms=30_000)
        accounts = {"main": {"keys": [{"env": "KEY_A"}], "concurrency": 20}}
        async with staged(
            tmp_path, lambda seen, n: slow, upstream={"accounts": accounts}, clock=VIRTUAL, bounds={"agent_in_flight": 500}
        ) as stage:
            for number in range(10):
                asked = [asyncio.create_task(stage.post()) for _ in range(100)]
                await VIRTUAL.sleep_ms(number * 400)
                for each in asked:
                    each.cancel()
                await asyncio.gather(*asked, return_exceptions=True)
            await stage.quiet()
            (lane,) = stage.gateway.desk.limiter.lanes.values()
            assert (lane.waiting, lane.group.ramp.in_flight) == (0, 0)
            limiter = stage.gateway.desk.limiter
            assert (limiter._futures, limiter._crowd._on_way, limiter._timers, lane._waiting) == ({}, {}, {}, {})
            assert stage.gateway.desk.body_bytes == 0
            assert (await stage.totals())["reserved_usd_micros"] == 0
            await stage.until(lambda: stage.upstream.open == 0)

    in_virtual_time(scene())
