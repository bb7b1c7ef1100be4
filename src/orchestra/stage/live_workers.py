"""The workers of the node as the courier sees them: who lives, whose heart beats, who has which attempt in hand."""

from __future__ import annotations

import os
import time
from typing import Any

from .codec import read_json
from .journal import agent_value
from .processes import alive


class Watched:
    """A worker whose death and whose heart are watched."""

    def __init__(self, agent: str, w: str) -> None:
        self.agent, self.w = agent, w
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

    def identity(self, agent: str) -> str | None:
        """Who holds the slot, or held it last."""
        lock = read_json("%s/agents/%s/lock" % (self.base, agent))
        return str(lock["w"]) if isinstance(lock, dict) and "w" in lock else None

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
            w = self.identity(agent)
            if w is None:
                continue  # it is being written: the next look finds it
            self.lock_stamps[agent] = stamp
            known = self.watched.get(agent)
            if (known is None or known.w != w) and alive(w):
                if known is not None:
                    known.close()
                self.watched[agent] = Watched(agent, w)

    def gone(self, ready: list[int]) -> list[Watched]:
        """Those that are dead, and are watched no more. Cheap for who has a pidfd."""
        dead = [one for one in self.watched.values() if (one.pidfd in ready or one.pidfd < 0) and not alive(one.w)]
        for one in dead:
            one.close()
            del self.watched[one.agent]
        return dead

    def hearts(self) -> list[dict[str, Any]]:
        """Notices of hearts that stopped or beat again."""
        notices = []
        moment = time.monotonic()
        for one in self.watched.values():
            try:
                mtime = os.stat("%s/agents/%s/beat" % (self.base, one.agent)).st_mtime_ns
            except OSError:
                mtime = one.beat_mtime
            if mtime != one.beat_mtime:
                one.beat_mtime, one.beat_seen = mtime, moment
            age = moment - one.beat_seen
            if (age > self.beat_missed_s) != one.missed:
                one.missed = not one.missed
                name = {"agent": agent_value(one.agent), "w": one.w}
                notices.append(dict(name, n="beat-missed", age_ms=int(age * 1000)) if one.missed else dict(name, n="beat-back"))
        return notices

    def told(self) -> list[dict[str, Any]]:
        """As in `inventory`."""
        found = []
        for agent in self.agents():
            w = self.identity(agent)
            if w is None:
                continue
            slot = "%s/agents/%s" % (self.base, agent)
            try:
                age_ms = max(0, int((time.time() - os.stat(slot + "/beat").st_mtime) * 1000))
            except OSError:
                age_ms = None
            current = read_json(slot + "/current")
            found.append({"agent": agent_value(agent), "w": w, "alive": alive(w), "beat_age_ms": age_ms, "current": current})
        return found

    def has_in_hand(self, place: str, folder: str) -> bool:
        """Whether a live worker has claimed this attempt, or is about to settle what a dead one left of it."""
        claim = read_json(folder + "/claim")
        if not isinstance(claim, dict):
            return False
        if alive(claim.get("w", "")):
            return True
        agent = str(claim.get("agent"))
        w = self.identity(agent) if "/" not in agent else None
        current = read_json("%s/agents/%s/current" % (self.base, agent))
        return w is not None and alive(w) and isinstance(current, dict) and current.get("dir") == place
