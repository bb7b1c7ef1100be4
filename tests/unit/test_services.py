"""The one contract of background services: whatever the order of start and stop, nothing is left running and no error is lost."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable

import pytest

from orchestra.engine.services import Service, ServiceGroup
from orchestra.errors import NodeFailed


class Activity:
    """Counts how often it was begun and ended."""

    def __init__(self) -> None:
        self.begun = self.ended = 0

    async def run(self) -> None:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.ended += 1


async def failing() -> None:
    raise NodeFailed("it broke")


async def turns(count: int = 3) -> None:
    """Lets everything that can go on go on."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_started_twice_it_runs_once() -> None:
    activity = Activity()
    service = Service("x", activity.run)
    service.start()
    service.start()
    await turns()
    assert (activity.begun, service.running) == (1, True)
    await service.stop()
    assert (activity.ended, service.running) == (1, False)


async def test_stopped_before_it_was_started_it_never_runs() -> None:
    activity = Activity()
    service = Service("x", activity.run)
    await service.stop()
    service.start()
    await turns()
    assert (activity.begun, service.running) == (0, False)
    await service.wait_ended()


async def test_stopped_while_starting_nothing_is_left() -> None:
    activity = Activity()
    service = Service("x", activity.run)
    service.start()
    await service.stop()
    assert not service.running
    assert activity.begun == activity.ended


async def test_stopped_twice_and_by_two_at_once() -> None:
    activity = Activity()
    service = Service("x", activity.run)
    service.start()
    await turns()
    await asyncio.gather(service.stop(), service.stop())
    await service.stop()
    assert activity.ended == 1


async def test_an_error_is_raised_to_whoever_waits_and_not_by_stop() -> None:
    service = Service("x", failing)
    service.start()
    await turns()
    await service.stop()
    with pytest.raises(NodeFailed):
        await service.wait_ended()


async def test_a_group_reports_the_first_that_fails() -> None:
    activity = Activity()
    group = ServiceGroup([Service("x", activity.run), Service("y", failing)])
    group.start()
    with pytest.raises(NodeFailed):
        await group.wait_failed()
    await group.stop()
    assert activity.begun == activity.ended


async def test_one_that_fails_in_the_fall_of_another_is_not_left_for_asyncio_to_complain_of() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    over = asyncio.Event()

    async def fail_late() -> None:
        await over.wait()
        raise NodeFailed("what it needs is gone")

    group = ServiceGroup([Service("first", failing), Service("late", fail_late)])
    group.start()
    with pytest.raises(NodeFailed, match="it broke"):
        await group.wait_failed()
    over.set()
    await turns()
    await group.stop()
    del group
    gc.collect()
    await turns()
    assert complaints == []


async def test_a_service_that_is_added_later_does_not_die_in_silence() -> None:
    group = ServiceGroup([Service("x", Activity().run)])
    group.start()
    waiting = asyncio.create_task(group.wait_failed())
    await turns()
    group.add(Service("late", failing))
    with pytest.raises(NodeFailed):
        async with asyncio.timeout(5):
            await waiting
    await group.stop()


async def test_a_group_stops_in_reverse() -> None:
    order: list[str] = []

    def body(name: str) -> Callable[[], Awaitable[None]]:
        async def run() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                order.append(name)

        return run

    group = ServiceGroup([Service(name, body(name)) for name in "abc"])
    group.start()
    await turns()
    await group.stop()
    assert order == ["c", "b", "a"]


async def test_waiting_can_be_given_up_and_leaves_the_services_alone() -> None:
    activity = Activity()
    group = ServiceGroup([Service("x", activity.run)])
    group.start()
    waiting = asyncio.create_task(group.wait_failed())
    await turns()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert activity.ended == 0
    await group.stop()
    assert activity.ended == 1


@pytest.mark.parametrize("seed", range(20))
async def test_any_order_of_starts_and_stops_leaves_nothing(seed: int) -> None:
    chance = random.Random(seed)
    before = asyncio.all_tasks()
    activities = [Activity() for _ in range(8)]
    group = ServiceGroup([])
    services = [Service(str(number), activity.run) for number, activity in enumerate(activities)]
    pending: list[asyncio.Task[None]] = []
    for _ in range(60):
        service = chance.choice(services)
        match chance.randrange(4):
            case 0:
                service.start()
            case 1:
                pending.append(asyncio.create_task(service.stop()))
            case 2:
                group.add(service)
            case _:
                await turns(1)
    await asyncio.gather(*pending)
    await group.stop()
    for service in services:
        await service.stop()
    await turns()
    assert all(activity.begun == activity.ended <= 1 for activity in activities)
    assert asyncio.all_tasks() == before
