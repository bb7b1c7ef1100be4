"""The lease: until when the coordinator is known to be there, by a clock that goes on while the machine sleeps and that nobody can set."""

from __future__ import annotations

import time

from .codec import dumps, read_json
from .files import write_atomic
from .processes import BOOT_CLOCK, boot_id


def moment_ms() -> int:
    """Milliseconds since the machine started."""
    return time.clock_gettime_ns(BOOT_CLOCK) // 1000000


def write_lease(base: str, ttl_ms: int) -> None:
    """From now on, for so long."""
    write_atomic(base + "/lease", dumps({"until_ms": moment_ms() + ttl_ms, "boot": boot_id()}))


def lease_holds(base: str) -> bool:
    """Whether there is one that is not over. That of before a restart of the machine is."""
    lease = read_json(base + "/lease")
    if not isinstance(lease, dict) or lease.get("boot") != boot_id():
        return False
    until_ms = lease.get("until_ms")
    return isinstance(until_ms, int) and moment_ms() < until_ms


class Fence:
    """Of one attempt, which may run only while the lease holds. Fallen once, it stays so: a lease renewed later is for other attempts."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.fallen = False

    def holds(self) -> bool:
        """Looks."""
        self.fallen = self.fallen or not lease_holds(self.base)
        return not self.fallen
