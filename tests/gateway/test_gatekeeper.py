"""The coordinator's part beside a real gateway, in virtual time: who is let in, whom a failure is blamed on, and what the parent is told, through storms."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from orchestra.core import commands as c
from orchestra.core.model import OutcomeKind, Payload, TaskSpec
from orchestra.core.state import State
from orchestra.engine.loop import Loop
from orchestra.gatekeeper import Gatekeeper, GatewayOptions, Started
from orchestra.ids import AttemptId, NodeId, PlanId, TaskId
from orchestra.scheduling.admission import ApiGate
from orchestra.testing.upstream import Answer, Seen, anthropic_json, refusal
from tests.gateway.support import Stage, staged
from tests.gateway.virtual import VirtualClock, in_virtual_time

CLOCK = VirtualClock()
MINUTE_MS = 60_000
RETRIES = 2
"""Of an agent's program behind the gateway."""


class Coordinator:
    """What the gatekeeper sees of one: what it lets in and what it reports are kept."""

    def __init__(self) -> None:
        self.state = State()
        self.gate = ApiGate()
        self.let: list[tuple[int, ApiGate]] = []
        self.told: list[tuple[int, c.NoteApi]] = []
        self.running: list[TaskSpec] = []

    @property
    def kernel(self) -> Coordinator:
        return self

    def let_in(self, api: ApiGate) -> None:
        self.gate = api
        self.let.append((CLOCK.steady_ms(), api))

    def listen(self, listener: object) -> None:
        """Nothing of the state is needed here."""

    async def ask(self, question: Callable[[State], Any]) -> Any:
        return list(self.running) if question.__name__ == "_at_work" else question(self.state)

    async def report(self, commands: Sequence[c.Command]) -> None:
        self.told += [(CLOCK.steady_ms(), each) for each in commands if isinstance(each, c.NoteApi)]

    def kinds(self) -> list[str]:
        return [each.kind for _, each in self.told]

    def closed_ms(self, begin_ms: int, end_ms: int) -> int:
        """For how long nothing was let in within that time."""
        closed = 0
        for (at_ms, gate), (next_ms, _) in zip(self.let, [*self.let[1:], (end_ms, self.gate)], strict=True):
            if gate.closed:
                closed += max(0, min(next_ms, end_ms) - max(at_ms, begin_ms))
        return closed


class Counted(Gatekeeper):
    """Counts what it asks the gateway."""

    asked: Counter[str]

    async def ask(self, method: str, params: dict[str, Any]) -> Any:
        self.asked[method] += 1
        return await super().ask(method, params)


async def never() -> Started:
    raise AssertionError("there is a gateway already")


@asynccontextmanager
async def kept(stage: Stage) -> AsyncIterator[tuple[Coordinator, Counted]]:
    coordinator = Coordinator()
    options = GatewayOptions({"api": "anthropic"}, {"claude": ("anthropic",)})
    keeper = Counted(cast(Loop, coordinator), CLOCK, stage.gateway.config.admin_socket, never, options)
    keeper.asked = Counter()
    task = asyncio.create_task(keeper.run())
    try:
        yield coordinator, keeper
        assert not task.done(), "it never ends by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Fleet:
    """Tasks that each ask the model four times, by a program that tries as often as the CLIs do behind a gateway, started only when they are let in."""

    def __init__(self, stage: Stage, coordinator: Coordinator, keeper: Gatekeeper) -> None:
        self._stage = stage
        self._coordinator = coordinator
        self._keeper = keeper
        self._round: int | None = None
        self._begun = 0
        self.failures = 0
        self.deferrals = 0

    def _may_start(self, spec: TaskSpec) -> bool:
        gate = self._coordinator.gate
        keys = (spec.kind, *gate.keys_of(spec))
        if any(key in gate.closed for key in keys):
            return False
        rooms = [(gate.room[key], gate.rounds[key]) for key in keys if key in gate.room]
        if not rooms:
            return True
        most, number = min(rooms)
        if number != self._round:
            self._round, self._begun = number, 0
        self._begun += 1
        return self._begun <= most

    async def task(self, number: int) -> None:
        spec = TaskSpec(TaskId(f"p/t{number}"), "", Payload("analysis", "x"), kind="claude", plan=PlanId("p"), node=NodeId("local"))
        for attempt in range(1, 100):
            while not self._may_start(spec):
                await CLOCK.sleep_ms(500)
            self._coordinator.running.append(spec)
            words = await self._attempt(AttemptId(spec.id, attempt), number)
            self._coordinator.running.remove(spec)
            if not words:
                return
            ruling = self._keeper.ruling(spec, AttemptId(spec.id, attempt), words)
            if ruling is None or ruling[0] is not OutcomeKind.DEFERRED:
                self.failures += 1
            else:
                self.deferrals += 1
            await CLOCK.sleep_ms(1_000)

    async def _attempt(self, attempt: AttemptId, number: int) -> str:
        issued = await self._stage.admin("issue_token", attempt=str(attempt), task=attempt.task, agent=str(number))
        for _ in range(4):
            for tries in range(RETRIES + 1):
                try:
                    status, _, headers = await self._stage.post(token=issued["token"])
                except aiohttp.ClientError:  # an idle connection that was closed just now
                    status, _, headers = 0, b"", {}
                if status == 200:
                    break
                wait_s = int(headers.get("retry-after", "1"))
                if headers.get("x-should-retry") == "false" or wait_s > 60 or tries == RETRIES:
                    await CLOCK.sleep_ms(200)  # until its end is known
                    return "rate-limited: the API refused"
                await CLOCK.sleep_ms(wait_s * 1_000)
            await CLOCK.sleep_ms(5_000)
        return ""


@pytest.mark.parametrize("minutes,retry_after,alarms", [(3, "20", 0), (7, "20", 1), (7, "", 1), (12, "900", 1)])
def test_a_storm_of_refusals_pauses_the_work_and_costs_no_task_a_retry(tmp_path: Path, minutes: int, retry_after: str, alarms: int) -> None:
    """All is well for a minute, then nothing but 429 for some, then all is well again. Only one that lasts for more than five minutes is an alarm."""
    begin_ms, end_ms = MINUTE_MS, (1 + minutes) * MINUTE_MS

    def script(seen: Seen, n: int) -> Answer:
        if begin_ms <= CLOCK.steady_ms() < end_ms:
            return refusal(429, "rate_limit_error", *([("retry-after", retry_after)] if retry_after else []))
        answer = anthropic_json(30, 40)
        return Answer(answer.status, answer.headers, answer.body, wait_ms=4_000)

    async def scene() -> None:
        async with staged(tmp_path, script, clock=CLOCK) as stage, kept(stage) as (coordinator, keeper):
            fleet = Fleet(stage, coordinator, keeper)

            async def later(number: int) -> None:
                await CLOCK.sleep_ms(number * 4_000)
                await fleet.task(number)

            await asyncio.gather(*(later(number) for number in range(30)))
            assert fleet.failures == 0
            assert coordinator.closed_ms(begin_ms, end_ms) > 0.9 * (end_ms - begin_ms)
            assert coordinator.kinds().count("limit_alarm") == alarms
            assert coordinator.kinds().count("limit_calm") == alarms
            if alarms:
                (at_ms,) = [at_ms for at_ms, each in coordinator.told if each.kind == "limit_alarm"]
                assert 5 * MINUTE_MS <= at_ms - begin_ms < 5.5 * MINUTE_MS, "counted from when the pace was refused, not one request"
            stormy = [seen for seen in stage.upstream.seen if begin_ms <= seen.at_ms < end_ms]
            assert 0 < len(stormy) < 80, "hardly anybody asks meanwhile"
            totals = await stage.totals()
            assert (totals["requests"], totals["reserved_usd_micros"]) >= (120, 0)

    in_virtual_time(scene())


def test_work_resumes_by_the_clock_however_much_there_is_to_notice(tmp_path: Path) -> None:
    """Notices come twenty times a second. The rounds are a second each all the same, and the gateway is looked at four times a second at most."""

    async def scene() -> None:
        async with staged(tmp_path, lambda seen, n: anthropic_json(1, 1), clock=CLOCK) as stage, kept(stage) as (coordinator, keeper):
            desk = stage.gateway.desk
            desk.parked[("api", "main")] = (CLOCK.steady_ms() + 5_000, "for the test")
            while CLOCK.steady_ms() < 15_000:
                desk.notices.tell("usage_assumed")
                await CLOCK.sleep_ms(50)
            resumed = [(at_ms, gate) for at_ms, gate in coordinator.let if at_ms >= 5_000 and "claude" in gate.room]
            rounds = {gate.rounds["claude"]: gate.room["claude"] for _, gate in resumed}
            assert list(rounds.values()) == [1, 2, 4, 8, 16, 32, 64, 128]
            times = [min(at_ms for at_ms, gate in resumed if gate.rounds["claude"] == each) for each in rounds]
            assert all(after - before == pytest.approx(1_000, abs=300) for before, after in itertools.pairwise(times)), times
            assert 10 < keeper.asked["limits"] <= 15 * 4 + 1
            assert keeper.asked["budgets"] == 1, "none is spent, so there is nothing to ask"

    in_virtual_time(scene())


def test_an_upstream_that_is_down_for_long_is_told_and_one_that_comes_back_is_not(tmp_path: Path) -> None:
    down = (2 * MINUTE_MS, 9 * MINUTE_MS)

    def script(seen: Seen, n: int) -> Answer:
        now_ms = CLOCK.steady_ms()
        return refusal(529, "overloaded_error") if now_ms < MINUTE_MS or down[0] <= now_ms < down[1] else anthropic_json(1, 1)

    async def scene() -> None:
        async with staged(tmp_path, script, clock=CLOCK) as stage, kept(stage) as (coordinator, _):
            while CLOCK.steady_ms() < 11 * MINUTE_MS:
                await stage.post()
                await CLOCK.sleep_ms(2_000)
            assert "upstream_down" in await stage.kinds()
            assert [each.kind for _, each in coordinator.told if each.kind.startswith("upstream")] == ["upstream_down", "upstream_back"]
            (at_ms,) = [at_ms for at_ms, each in coordinator.told if each.kind == "upstream_down"]
            assert 5 * MINUTE_MS < at_ms - down[0] < 7 * MINUTE_MS, "counted from the eighth failure, and tries are paused by chance"

    in_virtual_time(scene())


def test_a_limit_that_nobody_uses_any_more_is_no_alarm_and_said_to_be_calm(tmp_path: Path) -> None:
    accounts = {"main": {"keys": [{"env": "KEY_A"}], "limits": {"default": {"requests": 100}}}}

    async def scene() -> None:
        script = lambda seen, n: anthropic_json(1, 1)  # noqa: E731
        async with staged(tmp_path, script, upstream={"accounts": accounts}, clock=CLOCK) as stage, kept(stage) as (coordinator, _):
            await asyncio.gather(*(stage.post() for _ in range(90)))
            await CLOCK.sleep_ms(7 * MINUTE_MS)
            assert coordinator.kinds() == ["limit_warning", "limit_calm"]
            assert coordinator.told[1][0] - coordinator.told[0][0] < 2 * MINUTE_MS

    in_virtual_time(scene())


def test_the_window_of_a_subscription_that_begins_anew_is_said_to_be_calm(tmp_path: Path) -> None:
    def script(seen: Seen, n: int) -> Answer:
        window = "anthropic-ratelimit-unified-5h"
        reset_s = 1_800_000_000 + 600
        headers = ((f"{window}-utilization", "0.8"), (f"{window}-status", "allowed"), (f"{window}-reset", str(reset_s)))
        answer = anthropic_json(1, 1)
        return Answer(200, (*answer.headers, *headers), answer.body)

    async def scene() -> None:
        async with staged(tmp_path, script, clock=CLOCK) as stage, kept(stage) as (coordinator, _):
            await stage.post()
            await CLOCK.sleep_ms(4 * MINUTE_MS)
            assert coordinator.kinds() == ["limit_warning"]
            await CLOCK.sleep_ms(7 * MINUTE_MS)
            assert coordinator.kinds() == ["limit_warning", "limit_alarm", "limit_calm"]
            facts = [each.facts["limit"] for _, each in coordinator.told]
            assert facts == ["window_5h", "api.main opus-4 window_5h", "window_5h"]

    in_virtual_time(scene())
