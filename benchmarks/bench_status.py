"""State and screen text of 200 agents, against libtmux asked about the same windows."""

from __future__ import annotations

import asyncio
import time

from support import LIBTMUX, arguments, median, orchestra, peer_python, run_peer, show, wait_quiet

from orchestra.testing.hosted import Stage
from orchestra.usecases import AgentsParams, AttachParams

BAR = 1 / 20


async def once(stage: Stage, agents: int) -> float:
    """Seconds for one look at all of them."""
    started = time.perf_counter()
    state = await stage.app.agents(AgentsParams())
    screens = await stage.app.screens(AgentsParams())
    took = time.perf_counter() - started
    if len(state.agents) != agents or len(screens.screens) != agents or not all("waits" in text for text in screens.screens.values()):
        raise RuntimeError("not every agent was seen")
    return took


async def both(agents: int, rounds: int) -> tuple[list[float], list[float]]:
    """Ours and the peer's times, in turns, on the same tmux server."""
    own, peer = [], []
    async with orchestra(agents) as stage:
        argv = (await stage.app.attach(AttachParams(agent=1))).argv
        socket = argv[argv.index("-S") + 1]
        await asyncio.sleep(1)  # the workers that have just started are to be idle
        for _ in range(rounds):
            own += [await once(stage, agents) for _ in range(5)]
            found = await asyncio.get_running_loop().run_in_executor(None, run_peer, LIBTMUX, "libtmux_status.py", socket, 3)
            if found["panes"] < agents:
                raise RuntimeError(f"libtmux saw {found['panes']} panes")
            peer.append(float(found["seconds"]))
    return own, peer


def main() -> None:
    options = arguments(__doc__)
    agents, rounds = (50, 2) if options.quick else (200, 5)
    peer_python(LIBTMUX)
    busy = wait_quiet()
    own, peer = asyncio.run(both(agents, rounds))
    ratio = median(own) / median(peer)
    show(
        "status",
        "s",
        f"<= 1/{1 / BAR:.0f} x",
        ratio <= BAR,
        {"ours": "App.agents + App.screens", "peer": "libtmux: server.panes, capture_pane() of each"},
        ours=median(own),
        peer=median(peer),
        ratio=ratio,
        peer_times_ours=1 / ratio,
        agents=agents,
        busy_before=busy,
    )


if __name__ == "__main__":
    main()
