"""Plays a scenario: a coordinator, its gateway and windows as anybody has them, and a scripted API on loopback instead of the model's."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Final

from orchestra.bootstrap.coordinator import Coordinator
from orchestra.bootstrap.launch import load_settings
from orchestra.clocks.system import SystemClock
from orchestra.core import events as e
from orchestra.core.model import AgentStatus, OutcomeKind
from orchestra.core.state import State
from orchestra.engine.kernel import Happened
from orchestra.intake.request import InitParams, ShutdownParams, SubmitBatchParams, SubmitTaskParams
from orchestra.root import Root
from orchestra.testing.drills.scenario import Fault, Figures, Scenario
from orchestra.testing.hosted import end_processes, processes_left, processes_of
from orchestra.testing.upstream import Answer, Seen, Upstream, anthropic_json, refusal

KIND: Final = "asker"
KEY: Final = "drill-key"
WORK: Final = "work"
PROMPT: Final = "Ask the model a few times and say how many answers came."
LOOK_S: Final = 1.0
READY_S: Final = 120.0
FINISH_S: Final = 900.0
"""How long what was begun may take to end after the last task was given."""
WAITING_EACH: Final = 0.5
"""Tasks kept waiting for each agent, so that none is idle for want of work."""
BUSY_AGAIN: Final = 0.95
"""Share of the agents that have work again when it has recovered."""
ANSWERS: Final = re.compile(r"(\d+) answers")
KINDS: Final = {400: "invalid_request_error", 401: "authentication_error", 429: "rate_limit_error", 529: "overloaded_error"}

Tell = Callable[[str], None]


class Api:
    """The scripted API: answers after a while, unless a fault holds."""

    def __init__(self, scenario: Scenario, chance: random.Random) -> None:
        self.injected = 0
        self.began_ms = 0
        """When the first request came: from then on the faults are counted."""
        self._faults = scenario.faults()
        self._wait_ms = round(scenario.answer_seconds * 1000)
        self._chance = chance

    def answer(self, seen: Seen, number: int) -> Answer:
        self.began_ms = self.began_ms or seen.at_ms
        fault = self._fault((seen.at_ms - self.began_ms) / 1000)
        if fault is None:
            plain = anthropic_json(8, 1)
            return Answer(plain.status, plain.headers, plain.body, wait_ms=self._wait_ms)
        self.injected += 1
        after = () if fault.retry_after_seconds is None else (("retry-after", str(fault.retry_after_seconds)),)
        return refusal(fault.status, KINDS.get(fault.status, "api_error"), *after)

    def _fault(self, at_s: float) -> Fault | None:
        holding = (fault for fault in self._faults if fault.holds(at_s))
        return next((fault for fault in holding if self._chance.random() * 100 < fault.share_percent), None)


class Watch:
    """Counts what happens in the orchestra."""

    def __init__(self) -> None:
        self.crashes = self.completed = self.failed = self.attempts = self.deferred = self.answers = self.errors = 0
        self.completed_ms = 0
        self.now_ms: Callable[[], int] = lambda: 0

    def see(self, state: State, happened: Sequence[Happened]) -> None:
        for each in happened:
            match each.event:
                case e.AgentLost():
                    self.crashes += 1
                case e.TaskCompleted():
                    self.completed += 1
                    self.completed_ms = self.now_ms()
                case e.TaskFailed() | e.TaskCancelled():
                    self.failed += 1
                case e.AttemptEnded(outcome=outcome):
                    self.attempts += 1
                    self.deferred += outcome.kind is OutcomeKind.DEFERRED
                    got = ANSWERS.search(outcome.summary or outcome.reason)
                    failed = bool(got) and not outcome.summary
                    self.answers += (int(got[1]) if got else 0) + failed
                    self.errors += failed
                case _:
                    pass


async def play(scenario: Scenario, folder: Path, seed: int = 0, tell: Tell = lambda text: None) -> Figures:
    """Plays it in that folder, which has to be empty.

    Args:
        seed: Decides which requests of a share are refused.
        tell: Is told every ten seconds how it goes.
    """
    api, watch = Api(scenario, random.Random(seed)), Watch()
    upstream = Upstream(api.answer, SystemClock())
    url = await upstream.start()
    try:
        async with _orchestra(scenario, folder, url) as coordinator:
            return await _Drill(scenario, coordinator, upstream, api, watch, tell).run()
    finally:
        await upstream.stop()


@asynccontextmanager
async def _orchestra(scenario: Scenario, folder: Path, url: str) -> AsyncIterator[Coordinator]:
    """A coordinator of that folder; afterwards nothing of it is left."""
    root = _prepare(scenario, folder, url)
    coordinator = Coordinator(Root(root), load_settings(root, {}), SystemClock())
    await coordinator.start()
    try:
        yield coordinator
    finally:
        try:
            async with asyncio.timeout(READY_S):
                await coordinator.app.shutdown(ShutdownParams(graceful=False, drain_tasks=False, timeout_seconds=5))
                await coordinator.wait_ended()
        finally:
            await coordinator.stop()
            end_processes(processes_left(root))


def _prepare(scenario: Scenario, folder: Path, url: str) -> Path:
    """Writes the settings, the gateway's file and the agent's program; returns the root."""
    root = folder / "root"
    (root / "config").mkdir(parents=True)
    (folder / WORK).mkdir()
    asker, key = folder / "asker.py", folder / "key"
    asker.write_text(resources.files("orchestra").joinpath("testing", "drills", "asker.py").read_text("utf-8"))
    key.touch(0o600)
    key.write_text(KEY)
    upstream = {"kind": "anthropic", "base_url": url, "accounts": {"main": {"keys": [{"file": str(key)}]}}}
    (folder / "gateway.json").write_text(json.dumps({"upstreams": {"api": upstream}}))
    kind = {
        "command": f"{sys.executable} -I {asker} {scenario.turns} {{prompt_file}}",
        "env_pass": "ANTHROPIC_API_KEY,PATH",
        "error": "result:error",
        "summary": "result:summary",
    }
    settings = {
        "gateway": {"file": str(folder / "gateway.json")},
        "kinds": {KIND: kind},
        "cost": {"daily_budget_usd": 0, "task_budget_usd": 0},
        "sandbox": {"readable": [str(asker)]},
    }
    (root / "config" / "orchestra.yaml").write_text(json.dumps({"orchestra": settings}))
    return root


class _Drill:
    """One that is going on."""

    def __init__(self, scenario: Scenario, coordinator: Coordinator, upstream: Upstream, api: Api, watch: Watch, tell: Tell) -> None:
        self._scenario = scenario
        self._app = coordinator.app
        self._loop = coordinator.loop
        self._root = coordinator.root.path
        self._upstream = upstream
        self._api = api
        self._watch = watch
        self._tell = tell
        self._clock = SystemClock()
        self._began_ms = 0
        self._submitted = self._up = self._looks = 0
        self._memory: list[int] = []
        self._recovered_ms = 0

    async def run(self) -> Figures:
        self._loop.listen(self._watch.see)
        self._watch.now_ms = self._clock.steady_ms
        await self._app.init(InitParams(agent_count=self._scenario.agents))
        started = await self._started()
        self._tell(f"{started} of {self._scenario.agents} agents are up")
        self._began_ms = self._clock.steady_ms()
        while self._seconds() < self._scenario.duration_seconds:
            await self._feed()
            await self._look()
        last_s = self._seconds()
        while self._open() and self._seconds() < last_s + FINISH_S:
            await self._look()
        return self._figures(started)

    async def _started(self) -> int:
        """Returns how many agents came up in good time."""
        count = self._scenario.agents
        try:
            async with asyncio.timeout(READY_S):
                await self._app.wait_for(lambda state: _up(state) >= count or None)
        except TimeoutError:
            return await self._loop.ask(_up)
        return count

    async def _feed(self) -> None:
        wanted = round(self._scenario.agents * (1 + WAITING_EACH)) - self._open()
        if wanted > 0:
            first = self._submitted + 1
            place = str(self._root.parent / WORK)  # shared: not a copy each of the folder one happens to stand in
            tasks = [
                SubmitTaskParams(description=PROMPT, task_id=f"drill-{n}", agent=KIND, workspace=place, isolation="shared")
                for n in range(first, first + wanted)
            ]
            await self._app.submit_batch(SubmitBatchParams(tasks=tuple(tasks)))
            self._submitted += wanted

    async def _look(self) -> None:
        await asyncio.sleep(LOOK_S)
        up, busy = await self._loop.ask(lambda state: (_up(state), sum(agent.task is not None for agent in state.agents.values())))
        self._up += up
        self._looks += 1
        self._upstream.seen.clear()
        self._note_recovery(busy)
        if self._looks % 10 == 1:
            self._memory.append(_resident_bytes(self._root))
            self._tell(
                f"{self._seconds():.0f} s: {self._watch.completed} of {self._submitted} tasks completed, {busy} agents at work, "
                f"{self._api.injected} requests refused by the script, {self._watch.errors} errors seen by agents"
            )

    def _note_recovery(self, busy: int) -> None:
        over_ms = self._faults_over_ms()
        again = min(self._scenario.agents, self._open()) * BUSY_AGAIN
        if over_ms and not self._recovered_ms and self._watch.completed_ms > over_ms and busy >= again:
            self._recovered_ms = self._clock.steady_ms()

    def _faults_over_ms(self) -> int:
        """When the last fault was over, by the steady clock; 0 if there is none."""
        last_s = max((fault.from_seconds + fault.for_seconds for fault in self._scenario.faults()), default=0.0)
        return self._api.began_ms + round(last_s * 1000) if last_s and self._api.began_ms else 0

    def _open(self) -> int:
        """Tasks that are not over."""
        return self._submitted - self._watch.completed - self._watch.failed

    def _seconds(self) -> float:
        return (self._clock.steady_ms() - self._began_ms) / 1000

    def _figures(self, started: int) -> Figures:
        watch, count = self._watch, self._scenario.agents
        early, late = self._memory[len(self._memory) // 4], self._memory[-1]
        return Figures(
            agents_wanted=count,
            agents_started=started,
            crashes=watch.crashes,
            uptime_percent=round(100 * self._up / (self._looks * count), 3),
            tasks_submitted=self._submitted,
            tasks_completed=watch.completed,
            attempts=watch.attempts,
            deferred=watch.deferred,
            api_answers=watch.answers,
            api_errors=watch.errors,
            injected=self._api.injected,
            recovery_seconds=round((self._recovered_ms - self._faults_over_ms()) / 1000, 1) if self._recovered_ms else None,
            memory_growth=round(late / early, 3) if early else 0.0,
            seconds=round(self._seconds(), 1),
        )


def _up(state: State) -> int:
    return sum(agent.status in (AgentStatus.IDLE, AgentStatus.BUSY) for agent in state.agents.values())


def _resident_bytes(root: Path) -> int:
    """Memory of this process, which is the coordinator's, and of the gateway's."""
    pids = [os.getpid(), *(pid for pid, words in processes_of(root).items() if "gateway run" in words)]
    return sum(_resident_of(pid) for pid in pids)


def _resident_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
