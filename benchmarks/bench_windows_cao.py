"""An agent ready: ours against CLI Agent Orchestrator with its mock provider, 20 agents each."""

from __future__ import annotations

import asyncio
import time

from support import CAO, Unavailable, arguments, median, orchestra, run_peer, scratch, show, wait_quiet

from orchestra.intake.request import InitParams

BAR = 1 / 50


async def ours(agents: int) -> float:
    """Seconds an agent, all that has to be there before the first one included."""
    async with orchestra() as stage:
        started = time.perf_counter()
        reply = await stage.app.init(InitParams(agent_count=agents))
        took = time.perf_counter() - started
        if reply.agents_ready != agents:
            raise RuntimeError(f"{reply.agents_ready} of {agents} agents are ready")
        return took / agents


def main() -> None:
    options = arguments(__doc__)
    agents, rounds = (4, 1) if options.quick else (20, 3)
    busy = wait_quiet()
    own, peer, why = [], [], ""
    for number in range(rounds):
        own.append(asyncio.run(ours(20)))
        if number == 0:  # its time is in fixed waits: it differs by less than a hundredth from run to run
            try:
                with scratch() as folder:
                    peer.append(float(run_peer(CAO, "cao_agents.py", agents, environment={"TMPDIR": str(folder)})["seconds_an_agent"]))
            except Unavailable as reason:
                why = str(reason)
    ratio = median(own) / median(peer) if peer else None
    show(
        "windows_cao",
        "s an agent",
        f"<= 1/{1 / BAR:.0f} x",
        None if ratio is None else ratio <= BAR,
        {"ours": "init with 20 agents", "peer": f"cao-server on loopback, {agents} agents with --provider mock_cli, one after the other"},
        ours=median(own),
        peer=median(peer) if peer else None,
        ratio=ratio,
        peer_times_ours=None if ratio is None else 1 / ratio,
        busy_before=busy,
        why=why,
    )


if __name__ == "__main__":
    main()
