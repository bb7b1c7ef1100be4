"""Ending what dead workers left of their attempts, in steps between which the courier goes on with its work."""

from __future__ import annotations

import os
from typing import Any, Iterator

from .claim import claim_attempt, read_claim
from .codec import dumps, read_json
from .ending import ending_lost, forget_groups, lost_reason
from .files import write_atomic
from .folder import Folder, Refused, asked, attempt_parts
from .journal import Journal, framed, now_ms
from .live_workers import Workers
from .processes import identity_of
from .temporary import forget_temporary
from .wire import Wire


class Reaped:
    """An attempt that is being reaped."""

    def __init__(self, steps: Iterator[None], child: dict[str, Any], killed: dict[int, str], askers: list[Any]) -> None:
        self.steps, self.child, self.killed, self.askers = steps, child, killed, askers


class Reaping:
    """The attempts that are being reaped, and who asked for it."""

    def __init__(self, base: str, workers: Workers, wire: Wire) -> None:
        self.base, self.workers, self.wire = base, workers, wire
        self.w = identity_of(os.getpid())
        self.journal = Journal(base)
        self.in_hand: dict[str, Reaped] = {}

    def begin(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Ends what is left, in steps. The claim is taken first, so that a late order cannot start the attempt any more."""
        place = asked(request, "dir", str)
        parts = attempt_parts(place)
        folder = "%s/%s" % (self.base, "/".join(parts))
        Folder.walk(self.base, parts, make=True).__exit__()
        if isinstance(read_json(folder + "/exit.json"), dict):
            raise Refused("done", "%s is over" % place)
        claim_attempt(folder, self.w)
        if self.workers.has_in_hand(place, folder):
            raise Refused("worker-alive", "a live worker has %s in hand" % place)
        if place in self.in_hand:
            self.in_hand[place].askers.append(request.get("id"))
            return None
        killed: dict[int, str] = {}
        child = self.workers.child_of(place, read_claim(folder))
        self.in_hand[place] = Reaped(ending_lost(folder, child, killed), child, killed, [request.get("id")])
        return None

    def step(self) -> None:
        """One look at each."""
        for place in list(self.in_hand):
            one = self.in_hand[place]
            try:
                next(one.steps)
            except StopIteration:
                killed = sorted(one.killed)
                forget_groups(one.child)
                forget_temporary("%s/%s" % (self.base, place))
                if self._write_lost(place, lost_reason(one.child), killed):
                    del self.in_hand[place]
                    for number in one.askers:
                        self.wire.reply(number, {"killed": killed})

    def _write_lost(self, place: str, reason: str, killed: list[int]) -> bool:
        """False if the disk is full: tried again with the next step, whose look at the processes finds nothing."""
        parts = place.split("/")
        folder = "%s/%s" % (self.base, place)
        number = parts[-1]
        claim = read_claim(folder) or {}
        spec = read_json(folder + "/spec.json")
        agent = claim.get("agent")
        if agent is None:
            agent = spec.get("agent", 0) if isinstance(spec, dict) else 0
        names = {"task": "/".join(parts[1:-1]), "attempt": int(number) if number.isdigit() else 0}
        fields = dict(names, reason=reason, killed=killed)
        record = dict({"k": "lost", "ms": now_ms(), "agent": agent, "w": self.w}, **fields)
        try:
            write_atomic(folder + "/lost.json", dumps(fields))
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return self.journal.append(framed(record))
