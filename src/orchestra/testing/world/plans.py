"""Random plans and fleets: DAGs with priorities, replicas, retries, timeouts, kinds and pinned tasks."""

from __future__ import annotations

from random import Random

from orchestra.core import commands as c
from orchestra.core.model import AgentSpec, Check, NodeSpec, Payload, Priority, Strategy, TaskSpec
from orchestra.ids import AgentId, NodeId, PlanId, TaskId, plan_task_id
from orchestra.testing.world.options import Size

REPLICAS_MAX = 3
NEEDS_MAX = 3
KINDS = ("shell", "rehearsal")


def draw_nodes(size: Size) -> tuple[NodeSpec, ...]:
    """Returns the machines, and at the end one that nobody has thought of yet."""
    return tuple(NodeSpec(NodeId(f"node-{number}"), max_agents=250) for number in range(1, size.nodes + 2))


def draw_fleet(dice: Random, size: Size, nodes: tuple[NodeSpec, ...], *, even: bool = False) -> tuple[AgentSpec, ...]:
    """Returns the slots: round the nodes, some of one kind only. The first takes everything, so that every task can run somewhere."""
    mixed = dice.random() < 0.4
    fleet: list[AgentSpec] = []
    for number in range(1, size.agents + 1):
        kind = dice.choice(("any", *KINDS)) if mixed and number > 1 else "any"
        node = nodes[(number - 1) % len(nodes)].id
        fleet.append(AgentSpec(AgentId(number), node, kind, weight=100 if even else dice.choice((100, 100, 50, 200))))
    return tuple(fleet)


def draw_task(dice: Random, name: str, plan: PlanId | None, earlier: list[TaskId], fleet: tuple[AgentSpec, ...]) -> TaskSpec:
    """Returns a task that the whole fleet could run."""
    kind = dice.choice(KINDS)
    able = [agent for agent in fleet if agent.kind in ("any", kind)]
    pinned = dice.random() < 0.1
    node = dice.choice(able).node if pinned else None
    here = [agent for agent in able if node in (None, agent.node)]
    replicas = dice.randint(2, REPLICAS_MAX) if dice.random() < 0.1 else 1
    needs = dice.sample(earlier, min(len(earlier), dice.randint(0, NEEDS_MAX))) if dice.random() < 0.6 else []
    return TaskSpec(
        id=TaskId(name) if plan is None else plan_task_id(plan, name),
        description=f"does {name}",
        payload=Payload("command", "true"),
        kind=kind,
        plan=plan,
        priority=dice.choice(tuple(Priority)),
        strategy=dice.choice(tuple(Strategy)) if dice.random() < 0.2 else Strategy.PRIORITY,
        replicas=min(replicas, len(here)),
        needs=tuple(needs),
        retries=dice.randint(0, 4),
        backoff_ms=dice.choice((0, 10, 1000, 5000)),
        backoff_max_ms=60_000,
        estimate_ms=dice.randint(100, 60_000),
        timeout_ms=dice.choice((5_000, 60_000, 600_000)),
        checks=(Check("tests", ("true",)),) if dice.random() < 0.5 else (),
        node=node,
    )


def draw_plans(dice: Random, size: Size, fleet: tuple[AgentSpec, ...]) -> list[c.Submit]:
    """Returns what is submitted in the course of the run: plans, and a few tasks alone."""
    found: list[c.Submit] = []
    left = size.tasks
    for number in range(1, size.plans + 1):
        count = left if number == size.plans else dice.randint(0, left)
        left -= count
        if not count:
            continue
        plan = PlanId(f"p.{number}")
        specs: list[TaskSpec] = []
        for index in range(count):
            specs.append(draw_task(dice, f"t{index}", plan, [spec.id for spec in specs], fleet))
        found.append(c.Submit(tuple(specs), c.PlanHead(plan, "p", f"digest-{number}")))
    found.append(c.Submit((draw_task(dice, "TASK-1", None, [], fleet),)))
    return found


def draw_policy(dice: Random) -> c.Policy:
    """Returns the settings of the core: patient ones and impatient ones, so that small worlds have outages and reserves too."""
    return c.Policy(
        losses_max=dice.choice((2, 5, 50)),
        falls_max=dice.choice((2, 3, 10)),
        unknown_grace_ms=dice.choice((60_000, 300_000)),
        strikes_max=dice.choice((1, 3)),
        outage_agents_min=dice.choice((2, 3, 5)),
        futile_starts_max=dice.choice((3, 10)),
        breaker_max_ms=dice.choice((5_000, 60_000)),
        reserve=dice.choice((0, 1, 3)),
        scale_step=dice.choice((1, 3, 10)),
        alternatives={"rehearsal": "shell"},
    )
