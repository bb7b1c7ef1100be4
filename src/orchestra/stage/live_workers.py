"""The workers of the node as the courier sees them: who lives, whose heart beats, who has which attempt in hand."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from .claim import read_claim
from .codec import read_json
from .current import read_current
from .journal import agent_value
from .processes import alive


class Watched:
    """A worker whose death and whose heart are watched."""

    def __init__(self, agent: str, w: str, boot: str) -> None:
        self.agent, self.w, self.boot = agent, w, boot
        self.pidfd = self._open()
        self.beat_mtime = -1
        self.beat_seen = time.monotonic()  # when the beat was last seen to change: a clock that is set does not matter
        self.missed = False

    def _open(self) -> int:
        """A pidfd, or -1 where there is none; then the process is looked at."""
        try:
            return os.pidfd_open(int(self.w.partition(":")[0]))
        except (AttributeError, OSError, ValueError):
            return -1

    def close(self) -> None:
        """Lets go of it."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Workers:
    """The workers of the node, as their locks name them."""

    def __init__(self, base: str, beat_missed_s: float) -> None:
        self.base = base
        self.beat_missed_s = beat_missed_s
        self.watched: dict[str, Watched] = {}
        self.lock_stamps: dict[str, tuple[int, int]] = {}

    def agents(self) -> list[str]:
        """The slots there are."""
        try:
            return sorted(os.listdir(self.base + "/agents"))
        except OSError:
            return []

    def holder(self, agent: str) -> tuple[str, str] | None:
        """Who holds the slot, or held it last: identity, and since which start of the machine."""
        lock = read_json("%s/agents/%s/lock" % (self.base, agent))
        return (str(lock["w"]), str(lock.get("boot"))) if isinstance(lock, dict) and "w" in lock else None

    def refresh(self) -> None:
        """Finds new workers. Only locks that changed are read."""
        for agent in self.agents():
            try:
                facts = os.stat("%s/agents/%s/lock" % (self.base, agent))
            except OSError:
                continue
            stamp = (facts.st_mtime_ns, facts.st_size)
            if self.lock_stamps.get(agent) == stamp:
                continue
            holder = self.holder(agent)
            if holder is None:
                continue  # it is being written: the next look finds it
            self.lock_stamps[agent] = stamp
            known = self.watched.get(agent)
            if (known is None or known.w != holder[0]) and alive(*holder):
                if known is not None:
                    known.close()
                self.watched[agent] = Watched(agent, *holder)

    def gone(self, ready: list[int]) -> list[Watched]:
        """Those that are dead, and are watched no more. Cheap for who has a pidfd."""
        dead = [one for one in self.watched.values() if (one.pidfd in ready or one.pidfd < 0) and not alive(one.w, one.boot)]
        for one in dead:
            one.close()
            del self.watched[one.agent]
        return dead

    def hearts(self) -> list[dict[str, Any]]:
        """Notices of hearts that stopped or beat again."""
        notices = []
        for one in self.watched.values():
            age = self._age(one)
            if (age > self.beat_missed_s) != one.missed:
                one.missed = not one.missed
                name = {"agent": agent_value(one.agent), "w": one.w}
                notices.append(dict(name, n="beat-missed", age_ms=int(age * 1000)) if one.missed else dict(name, n="beat-back"))
        return notices

    def _age(self, one: Watched) -> float:
        """Seconds since the heart was last seen to beat, by the courier's own clock: one that is set makes nobody look silent."""
        moment = time.monotonic()
        try:
            mtime = os.stat("%s/agents/%s/beat" % (self.base, one.agent)).st_mtime_ns
        except OSError:
            mtime = one.beat_mtime
        if mtime != one.beat_mtime:
            one.beat_mtime, one.beat_seen = mtime, moment
        return moment - one.beat_seen

    def told(self) -> list[dict[str, Any]]:
        """As in `inventory`. Who is named as alive is watched from here on: nobody's end can fall between this and the next look."""
        self.refresh()
        found = []
        for agent in self.agents():
            holder = self.holder(agent)
            if holder is None:
                continue
            slot = "%s/agents/%s" % (self.base, agent)
            one = self.watched.get(agent)
            age_ms = None if one is None or one.w != holder[0] else int(self._age(one) * 1000)
            current = read_current(slot)
            in_hand = {name: current.get(name) for name in ("dir", "task", "attempt")} if current else None
            found.append({"agent": agent_value(agent), "w": holder[0], "alive": alive(*holder), "beat_age_ms": age_ms, "current": in_hand})
        return found

    def has_in_hand(self, place: str, folder: str) -> bool:
        """Whether a live worker has claimed this attempt, or is about to settle what a dead one left of it."""
        claim = read_claim(folder)
        if claim is None or claim["agent"] is None:
            return False
        if alive(claim["w"], claim["boot"]):
            return True
        agent = str(claim["agent"])
        holder = self.holder(agent)
        return holder is not None and alive(*holder) and read_current("%s/agents/%s" % (self.base, agent)).get("dir") == place

    def child_of(self, place: str, claim: dict[str, Any] | None) -> dict[str, Any]:
        """What the worker that claimed an attempt noted of the program it ran last; empty if it has something else in hand, or nothing."""
        current = read_current("%s/agents/%s" % (self.base, claim["agent"])) if claim is not None else {}
        child = current.get("child") if current.get("dir") == place else None
        return child if isinstance(child, dict) else {}

    def kill(self, agent: str, w: str) -> bool:
        """SIGKILL for the worker that holds the slot, if it still is this one. It is watched, so that its end is told."""
        self.refresh()
        one = self.watched.get(agent)
        if one is None or one.w != w or not alive(w, one.boot):
            return False
        try:
            if one.pidfd >= 0 and hasattr(signal, "pidfd_send_signal"):
                signal.pidfd_send_signal(one.pidfd, signal.SIGKILL)
            else:
                os.kill(int(w.partition(":")[0]), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True
