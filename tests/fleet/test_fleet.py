"""Two machines reached by SSH, driven as one: whatever happens to a link, a server, a window, a worker or a machine, every task is completed exactly once."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import pytest

from orchestra.core.model import NodeStatus
from orchestra.errors import Refused
from orchestra.fallback import FALLBACK
from orchestra.ids import NodeId
from orchestra.intake.request import InitParams, ScaleParams
from orchestra.testing.hosted import wait_until
from orchestra.testing.lab import Lab, LabNode
from orchestra.usecases import (
    Empty,
    NodeAddParams,
    NodeDrainParams,
    NodeParams,
    NodeRemoveParams,
    TaskParams,
    TypeParams,
)
from tests.fleet.support import Fleet, attempts_of, fleet, hung

LOST, READY = NodeStatus.LOST, NodeStatus.READY


def workers_of(node: LabNode) -> list[int]:
    """Returns the workers on a machine, by pid as seen from outside."""
    return sorted(pid for pid, line in node.processes().items() if ".worker import" in line)


def told(fleet: Fleet, event: str) -> list[dict[str, object]]:
    """Returns what the parent was told of a kind, in order."""
    fleet.stage.coordinator._parent_events.flush()
    files = sorted((fleet.stage.root.events).glob(f"*-{event}.json"))
    return [msgspec.json.decode(file.read_bytes()) for file in files]


async def test_work_is_spread_over_the_machines_and_runs_where_it_says(lab: Lab, tmp_path: Path) -> None:
    async with fleet(lab, tmp_path, agents=6) as it:
        it.open_gate()
        plan = await it.submit(40)
        await it.wait_completed(plan)
        places = {node: sum(a.node == node for t in it.state.tasks.values() for a in t.attempts) for node in lab.nodes}
        assert all(count >= 10 for count in places.values()), places
        pinned = await it.submit(4, name="q", run="hostname > ~/$ORCHESTRA_ATTEMPT-$$; " + "hostname", more=", node: majin")
        assert await it.stage.wait_plan(pinned) == "completed"
        hosts = lab.nodes["majin"].run(["sh", "-c", "cat ~/1-*"]).stdout.split()
        assert hosts == ["majin"] * 4


# --- the link --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["both", "from_node", "to_node"])
async def test_a_cut_link_stops_no_work_and_loses_no_result(lab: Lab, tmp_path: Path, direction: str) -> None:
    async with fleet(lab, tmp_path) as it:
        plan = await it.submit(6)
        await it.wait_running(6)
        lab.nodes["majin"].cut(direction)  # type: ignore[arg-type]
        await it.wait_node("majin", LOST)
        it.open_gate()
        await it.stage.wait(lambda state: True if sum(t.status.value == "completed" for t in state.tasks.values()) == 3 else None)
        lab.nodes["majin"].heal()
        await it.wait_completed(plan)
        assert attempts_of(it.state, plan) == [1] * 6, "what went on by itself was not started again"
        assert [each["node"] for each in told(it, "node_lost")] == ["majin"]
        await it.wait_node("majin", READY)
        await it.wait_all_up()


async def test_work_of_a_machine_lost_for_good_goes_elsewhere_and_late_results_change_nothing(lab: Lab, tmp_path: Path) -> None:
    async with fleet(lab, tmp_path, flags={"limits.unknown_grace_seconds": "1"}) as it:
        plan = await it.submit(6)
        await it.wait_running(6)
        lab.nodes["majin"].cut()
        await it.wait_node("majin", LOST)
        it.open_gate()
        await it.wait_completed(plan)
        assert sorted(attempts_of(it.state, plan)) == [1, 1, 1, 2, 2, 2]
        await it.wait_idle("majin")
        lab.nodes["majin"].heal()
        await it.stage.wait(lambda state: True if state.totals.stale == 3 else None)
        await it.wait_all_up()
        assert await it.stage.wait_plan(await it.submit(6, name="q")) == "completed"


async def test_a_fenced_machine_stops_its_work_before_another_gets_it(lab: Lab, tmp_path: Path) -> None:
    flags = {"limits.unknown_grace_seconds": "5", "recovery.fence_seconds": "1"}
    async with fleet(lab, tmp_path, flags=flags) as it:
        plan = await it.submit(6)
        await it.wait_running(6)
        lab.nodes["majin"].cut()
        await it.wait_idle("majin")
        assert all(len(task.attempts) == 1 for task in it.state.tasks.values()), "stopped there before it was given away"
        it.open_gate()
        await it.stage.wait_plan(plan)
        lab.nodes["majin"].heal()
        await it.wait_completed(plan)
        await it.wait_all_up()


# --- the SSH server --------------------------------------------------------------------------------------------------


async def test_a_restart_of_the_ssh_server_is_not_noticed(lab: Lab, tmp_path: Path) -> None:
    async with fleet(lab, tmp_path) as it:
        plan = await it.submit(6)
        await it.wait_running(6)
        lab.nodes["majin"].restart_sshd()
        it.open_gate()
        await it.wait_completed(plan)
        assert attempts_of(it.state, plan) == [1] * 6
        assert told(it, "node_lost") == []


async def test_a_stopped_session_is_given_up_and_another_is_made(lab: Lab, tmp_path: Path) -> None:
    async with fleet(lab, tmp_path) as it:
        plan = await it.submit(6)
        await it.wait_running(6)
        lab.nodes["majin"].pause_sshd_sessions()
        await it.wait_node("majin", LOST)
        await it.wait_node("majin", READY)
        it.open_gate()
        await it.wait_completed(plan)
        assert attempts_of(it.state, plan) == [1] * 6
        lab.nodes["majin"].resume_sshd_sessions()


async def test_another_host_key_is_refused_until_it_is_the_old_one_again(lab: Lab, tmp_path: Path) -> None:
    async with fleet(lab, tmp_path) as it:
        plan = await it.submit(6)
        await it.wait_running(6)
        majin = lab.nodes["majin"]
        majin.replace_host_key()
        majin.pause_sshd_sessions()
        await it.stage.wait(lambda state: True if "key" in state.nodes[NodeId("majin")].reason.lower() else None)
        it.open_gate()
        majin.restore_host_key()
        await it.wait_completed(plan)
        await it.wait_node("majin", READY)
        majin.resume_sshd_sessions()
        assert attempts_of(it.state, plan) == [1] * 6


# --- windows and workers ---------------------------------------------------------------------------------------------


async def test_a_tmux_server_that_is_killed_takes_no_work_with_it(lab: Lab, tmp_path: Path) -> None:
    async with fleet(lab, tmp_path) as it:
        plan = await it.submit(6)
        await it.wait_running(6)
        assert lab.nodes["majin"].kill_tmux() == 1
        await wait_until(lambda: len(_windows(lab.nodes["majin"])) == 3)
        it.open_gate()
        await it.wait_completed(plan)
        assert attempts_of(it.state, plan) == [1] * 6


def _windows(node: LabNode) -> set[str]:
    """The ids of the agents' windows."""
    script = 'for s in /tmp/orchestra-*/*/tmux.sock; do tmux -S "$s" list-windows -a -F "#{window_id} #{window_name}" 2>/dev/null; done | sed -n "s/ agent-.*//p"'
    return set(node.run(["sh", "-c", script]).stdout.split())


async def test_one_text_is_typed_into_the_windows_of_both_machines(lab: Lab, tmp_path: Path) -> None:
    async with fleet(lab, tmp_path) as it:
        plan = await it.submit(6, run='read line; echo "$line" >> ~/heard', more=", stdin: pane")
        await it.wait_running(6)
        await it.stage.app.type_text(TypeParams(agents=tuple(sorted(it.state.agents)), text="go on"))
        assert await it.stage.wait_plan(plan) == "completed"
        for node in lab.nodes.values():
            assert node.run(["cat", "/home/ubuntu/heard"]).stdout.splitlines() == ["go on"] * 3


async def test_all_windows_of_a_machine_killed_at_once_come_back(lab: Lab, tmp_path: Path) -> None:
    async with fleet(lab, tmp_path, agents=200) as it:
        plan = await it.submit(200)
        await it.wait_running(200)
        majin = lab.nodes["majin"]
        before = _windows(majin)
        assert len(before) == 100
        script = 'for s in /tmp/orchestra-*/*/tmux.sock; do printf "kill-window -t %s\\n" "$@" | tmux -S "$s" source-file -; done'
        majin.run(["sh", "-c", script, "sh", *before], check=False)

        async def are_back() -> bool:
            found = await asyncio.to_thread(_windows, majin)  # the coordinator is in this process: looking is not to keep it from its work
            return len(found) == 100 and not found & before

        await wait_until(are_back)
        it.open_gate()
        await it.wait_completed(plan)
        await it.wait_all_up()


async def test_a_worker_that_hangs_for_ever_is_looked_at_asked_and_killed(lab: Lab, tmp_path: Path) -> None:
    async with fleet(lab, tmp_path) as it:
        plan = await it.submit(6)
        await it.wait_running(6)
        with hung(workers_of(lab.nodes["majin"])[0]):
            await it.stage.wait(lambda state: True if any(t.losses for t in state.tasks.values()) else None)
        it.open_gate()
        await it.wait_completed(plan)
        assert sorted(attempts_of(it.state, plan)) == [1, 1, 1, 1, 1, 2]
        failures = told(it, "agent_failure")
        assert {each["severity"] for each in failures} == {"medium", "high"}, "told when it fell silent, and when it was ended"
        await it.wait_all_up()
        assert len(told(it, "agent_recovered")) == 1


async def test_most_workers_of_a_machine_dying_at_once_are_an_outage(lab: Lab, tmp_path: Path) -> None:
    async with fleet(lab, tmp_path, agents=20, flags={"recovery.max_recovery_attempts": "1"}) as it:
        plan = await it.submit(20)
        await it.wait_running(20)
        for pid in workers_of(lab.nodes["majin"])[:8]:
            os.kill(pid, signal.SIGKILL)
        await it.stage.wait(lambda state: True if sum(t.losses for t in state.tasks.values()) == 8 else None)
        it.open_gate()
        await it.wait_completed(plan)
        await it.wait_all_up()
        assert "fell at once" in str(told(it, "node_degraded")[0]["reason"])
        assert told(it, "unrecoverable_error") == [], "nobody is charged for an outage"


# --- machines --------------------------------------------------------------------------------------------------------


async def test_a_machine_that_is_started_anew_gets_its_agents_back(lab: Lab, tmp_path: Path) -> None:
    async with fleet(lab, tmp_path) as it:
        plan = await it.submit(6)
        await it.wait_running(6)
        boot = it.state.nodes[NodeId("majin")].boot
        lab.nodes["majin"].reboot()
        await it.stage.wait(lambda state: True if state.nodes[NodeId("majin")].boot != boot else None)
        it.open_gate()
        await it.wait_completed(plan)
        await it.wait_all_up()
        assert sorted(attempts_of(it.state, plan)) == [1, 1, 1, 2, 2, 2]
        assert any(each["rebooted"] for each in told(it, "node_recovered"))


async def test_a_machine_whose_disk_is_full_gets_no_work_until_there_is_room(lab: Lab, tmp_path: Path) -> None:
    async with fleet(lab, tmp_path) as it:
        it.open_gate()
        lab.nodes["majin"].fill_disk()
        plan = await it.submit(30)
        assert await it.stage.wait_plan(plan) == "completed"
        done = [task.attempts[task.primary - 1].node for task in it.state.tasks.values()]
        assert "mugen" in done
        pinned = await it.submit(1, name="pinned", more=", node: majin")
        said = (await it.stage.app.explain(TaskParams("pinned/t0"))).explanation
        assert "majin" in said, said
        lab.nodes["majin"].free_disk()
        assert await it.stage.wait_plan(pinned) == "completed"
        await it.wait_all_up()


async def test_a_machine_added_and_one_drained_in_mid_run(lab: Lab, tmp_path: Path) -> None:
    async with fleet(lab, tmp_path, agents=6, max_agents=5) as it:
        plan = await it.submit(12)
        await it.wait_running(6)
        with pytest.raises(Refused, match="12 agents do not fit"):
            await it.stage.app.scale(ScaleParams(target_count=12))
        lab.add_node("kirin")
        await it.stage.app.node_add(NodeAddParams("kirin", host="kirin", ssh_user="ubuntu", max_agents=10, tags=("new",)))
        await it.wait_node("kirin", READY)
        await it.stage.app.scale(ScaleParams(target_count=12))
        await it.wait_running(12)
        reply = await it.stage.app.node_drain(NodeDrainParams("majin", move=True))
        assert (reply.leaving, reply.moved) == (len(it.on_node("majin")), reply.leaving)
        with pytest.raises(Refused, match=r"has \d+ agents"):
            await it.stage.app.node_remove(NodeRemoveParams("majin"))
        it.open_gate()
        await it.wait_completed(plan)
        await it.stage.wait(lambda state: True if not state.agents_on(NodeId("majin")) else None)
        await it.stage.app.node_remove(NodeRemoveParams("majin"))
        assert [node.name for node in (await it.stage.app.nodes(Empty())).nodes] == ["mugen", "kirin"]
        tagged = await it.submit(2, name="tagged", more=", tags: [new]")
        await it.wait_completed(tagged)
        assert {t.attempts[0].node for t in it.state.tasks.values() if t.spec.plan == "tagged"} == {"kirin"}
        await it.stage.app.node_drain(NodeDrainParams("kirin"))
        await it.stage.app.node_resume(NodeParams("kirin"))


async def test_a_coordinator_that_starts_anew_finds_its_machines(lab: Lab, tmp_path: Path) -> None:
    async with fleet(lab, tmp_path, end=False) as it:
        plan = await it.submit(6)
        await it.wait_running(6)
    async with fleet(lab, tmp_path, agents=None) as again:
        again.open_gate()
        await again.wait_completed(plan)
        assert attempts_of(again.state, plan) == [1] * 6


# --- phases ----------------------------------------------------------------------------------------------------------


async def test_phases_fifty_two_hundred_fifty_with_a_thousand_tasks(lab: Lab, tmp_path: Path) -> None:
    async with fleet(lab, tmp_path, agents=None) as it:
        reply = await it.stage.app.init(InitParams(phase=1))
        assert reply.agent_manifest == {"total": 18, "mugen": 12, "majin": 6}
        it.open_gate()
        plan = await it.submit(1000)
        for target in (50, 200, 50):
            await it.stage.app.scale(ScaleParams(target_count=target))
            await it.wait_scaled(target)
            await it.wait_all_up()
        await it.wait_completed(plan)
        assert attempts_of(it.state, plan) == [1] * 1000, "scaling touched no work"
        assert len(told(it, "scaling")) > 20


# --- without anybody's help ------------------------------------------------------------------------------------------


async def test_when_every_machine_is_lost_the_work_goes_on_here_if_that_is_allowed(lab: Lab, tmp_path: Path) -> None:
    flags = {"fallback.local_agents": "2", "fallback.after_seconds": "0.5", "limits.unknown_grace_seconds": "1"}
    async with fleet(lab, tmp_path, agents=4, flags=flags) as it:
        for node in lab.nodes.values():
            node.cut()
        plan = await it.submit(4, run="true")
        assert await it.stage.wait_plan(plan) == "completed"
        assert {task.attempts[-1].node for task in it.state.tasks.values()} == {FALLBACK}
        for node in lab.nodes.values():
            node.heal()
        await it.stage.wait(lambda state: True if FALLBACK not in state.nodes else None)
        await it.wait_all_up()
        assert await it.stage.wait_plan(await it.submit(4, name="q", run="true")) == "completed"


async def test_a_provisioner_makes_room_for_a_scaling(lab: Lab, tmp_path: Path) -> None:
    answer = '{"nodes": {"kirin": {"host": "kirin", "ssh_user": "ubuntu", "max_agents": 10}}}'
    program = tmp_path / "provide.sh"
    program.write_text(f"#!/bin/sh\ncat > {tmp_path}/told\necho '{answer}'\n")
    program.chmod(0o755)
    async with fleet(lab, tmp_path, agents=4, max_agents=2, flags={"provisioner.command": str(program)}) as it:
        lab.add_node("kirin")
        await it.stage.app.scale(ScaleParams(target_count=10, strategy="immediate"))
        await it.wait_scaled(10)
        await it.wait_all_up()
        assert len(it.on_node("kirin")) == 6
        assert '"wanted_agents": 6' in (tmp_path / "told").read_text()
