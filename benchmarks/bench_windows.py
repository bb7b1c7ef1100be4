"""200 agents ready, a live worker in each window, against libtmux making 200 bare windows."""

from __future__ import annotations

import asyncio
import time

from support import LIBTMUX, arguments, median, orchestra, run_peer, scratch, show, wait_quiet

from orchestra.intake.request import InitParams

BAR = 0.5


async def ours(agents: int) -> float:
    """Seconds from the request until every agent has reported itself ready, tmux server, session and courier included."""
    async with orchestra() as stage:
        started = time.perf_counter()
        reply = await stage.app.init(InitParams(agent_count=agents))
        took = time.perf_counter() - started
        if reply.agents_ready != agents:
            raise RuntimeError(f"{reply.agents_ready} of {agents} agents are ready")
        return took


def libtmux(windows: int) -> float:
    """Seconds for the same number of windows in which nothing but `cat` runs."""
    with scratch() as folder:
        found = run_peer(LIBTMUX, "libtmux_windows.py", windows, environment={"TMPDIR": str(folder)})
    if found["windows"] != windows:
        raise RuntimeError(f"libtmux made {found['windows']} windows")
    return float(found["seconds"])


def main() -> None:
    options = arguments(__doc__)
    agents, rounds = (50, 2) if options.quick else (200, 5)
    busy = wait_quiet()
    own, peer = [], []
    for _ in range(rounds):
        own.append(asyncio.run(ours(agents)))
        peer.append(libtmux(agents))
    ratio = median(own) / median(peer)
    show(
        "windows",
        "s",
        f"<= {BAR} x",
        ratio <= BAR,
        {"ours": f"init with {agents} agents", "peer": f"libtmux: {agents} x new_window('/bin/cat')"},
        ours=median(own),
        peer=median(peer),
        ratio=ratio,
        all_ours=own,
        all_peer=peer,
        agents=agents,
        busy_before=busy,
    )


if __name__ == "__main__":
    main()
