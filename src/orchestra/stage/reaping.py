"""Ending what dead workers left of their attempts, in steps between which the courier goes on with its work."""

from __future__ import annotations

import os
from typing import Any, Iterator

from .codec import dumps, read_json
from .ending import ending_lost, lost_reason
from .files import write_atomic
from .folder import Folder, Refused, asked, attempt_parts
from .journal import append_record, claim_attempt, framed, now_ms
from .live_workers import Workers
from .processes import identity_of
from .wire import Wire


class Reaping:
    """The attempts that are being reaped, and who asked for it."""

    def __init__(self, base: str, workers: Workers, wire: Wire) -> None:
        self.base, self.workers, self.wire = base, workers, wire
        self.in_hand: dict[str, tuple[Iterator[None], dict[int, str], list[Any]]] = {}

    def begin(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Ends what is left, in steps. The claim is taken first, so that a late order cannot start the attempt any more."""
        place = asked(request, "dir", str)
        parts = attempt_parts(place)
        folder = "%s/%s" % (self.base, "/".join(parts))
        Folder.walk(self.base, parts, make=True).__exit__()
        if isinstance(read_json(folder + "/exit.json"), dict):
            raise Refused("done", "%s is over" % place)
        claim_attempt(folder, {"agent": None, "w": identity_of(os.getpid())})
        claim = read_json(folder + "/claim")
        if isinstance(claim, dict) and claim.get("agent") is not None and self.workers.has_in_hand(place, folder):
            raise Refused("worker-alive", "a live worker has %s in hand" % place)
        if place in self.in_hand:
            self.in_hand[place][2].append(request.get("id"))
            return None
        killed: dict[int, str] = {}
        self.in_hand[place] = (ending_lost(folder, killed), killed, [request.get("id")])
        return None

    def step(self) -> None:
        """One look at each."""
        for place in list(self.in_hand):
            steps, killed, numbers = self.in_hand[place]
            try:
                next(steps)
            except StopIteration:
                if self._write_lost(place, sorted(killed)):
                    del self.in_hand[place]
                    for number in numbers:
                        self.wire.reply(number, {"killed": sorted(killed)})

    def _write_lost(self, place: str, killed: list[int]) -> bool:
        """False if the disk is full: tried again with the next step, whose look at the processes finds nothing."""
        parts = place.split("/")
        folder = "%s/%s" % (self.base, place)
        number = parts[-1]
        claim = read_json(folder + "/claim") or {}
        spec = read_json(folder + "/spec.json")
        agent = claim.get("agent")
        if agent is None:
            agent = spec.get("agent", 0) if isinstance(spec, dict) else 0
        names = {"task": "/".join(parts[1:-1]), "attempt": int(number) if number.isdigit() else 0}
        fields = dict(names, reason=lost_reason(folder), killed=killed)
        record = dict({"k": "lost", "ms": now_ms(), "agent": agent, "w": identity_of(os.getpid())}, **fields)
        try:
            write_atomic(folder + "/lost.json", dumps(fields))
        except FileNotFoundError:
            pass
        except OSError:
            return False
        return append_record(self.base, framed(record))
