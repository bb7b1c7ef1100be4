"""`orchestra gateway`: the proxy between agents and model APIs, usable with or without an orchestra."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import click

from orchestra.edges.cli.budget_asked import amount_asked, budget_arguments
from orchestra.edges.cli.grammar import EXIT_UNHEALTHY, Command, Group, session_of
from orchestra.edges.cli.session import Session
from orchestra.quantity import ms_from_seconds, show_ms, show_usd, usd_micros

CONFIG_DEFAULT = "gateway.yaml"
CONFIG_VARIABLE = "ORCHESTRA_GATEWAY_CONFIG"
SCOPES = ("all", "attempt", "task", "agent", "plan", "day", "model")
EVENTS_WAIT_MS = 20_000

config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=CONFIG_DEFAULT,
    show_default=True,
    envvar=CONFIG_VARIABLE,
    help="The gateway's own file.",
)


@click.group("gateway", cls=Group, example="orchestra gateway run --config gateway.yaml\norchestra gateway usage --by task --json")
def gateway() -> None:
    """Run the proxy to the model APIs: keys, limits, cost and budgets.

    It holds the keys, keeps the limits, counts the cost and ends what passes its budget. Agents get its address and a token of their own.
    """


def ask(config_path: Path, method: str, **params: Any) -> Any:
    """Returns what the running gateway of a configuration answers."""
    from orchestra.gateway.admin import ask_admin
    from orchestra.gateway.config import load_config

    return asyncio.run(ask_admin(load_config(config_path).admin_socket, method, params))


@gateway.command("run", cls=Command, example="orchestra gateway run --config gateway.yaml")
@config_option
@click.pass_context
def run(context: click.Context, config_path: Path) -> int:
    """Run the gateway in this terminal.

    SIGHUP reads the file and all keys again. SIGTERM and Ctrl-C take no new requests, wait for those on their way, and end.
    """
    from orchestra.clocks.system import SystemClock
    from orchestra.gateway.service import Gateway
    from orchestra.secrets import handed

    handed.accept()
    session = session_of(context)
    return asyncio.run(serve(session, Gateway(config_path, SystemClock(), handed.environment())))


async def serve(session: Session, service: Any) -> int:
    """Runs until a signal or `stop` of the administration."""
    import signal

    from orchestra.errors import OrchestraError

    loop = asyncio.get_running_loop()
    again = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.stopping.set)
    loop.add_signal_handler(signal.SIGHUP, again.set)
    await service.start()
    session.render.note(f"gateway at http://{service.config.address[0]}:{service.port}, administration at {service.config.admin_socket}")

    async def reload_for_ever() -> None:
        while True:
            await again.wait()
            again.clear()
            try:
                await service.reload()
                session.render.note("configuration and keys were read again")
            except OrchestraError as error:
                session.render.note(f"nothing was changed: {error}")

    reloading = asyncio.create_task(reload_for_ever(), name="gateway-reload")
    try:
        await service.stopping.wait()
        left = await service.drain()
        if left:
            session.render.note(f"{left} requests were cut off")
    finally:
        reloading.cancel()
        await asyncio.gather(reloading, return_exceptions=True)
        await service.stop()
    return 0


@gateway.command("status", cls=Command, example="orchestra gateway status --json")
@config_option
@click.pass_context
def status(context: click.Context, config_path: Path) -> int:
    """Show whether the gateway and its accounts are well; exits with 1 if not."""
    session = session_of(context)
    found = ask(config_path, "health")

    def human() -> None:
        session.render.fields(
            [
                ("gateway", "healthy" if found["healthy"] else "not healthy"),
                ("port", str(found["port"])),
                ("requests", f"{found['open']} open, {found['served']} served"),
                ("tokens", str(found["tokens"])),
                ("upstreams down", ", ".join(found["upstreams_down"]) or "none"),
            ]
        )
        rows = [
            (name, str(each["keys"]), str(each["keys_refused"]), show_ms(each["parked_ms"]) if each["parked_ms"] else "no")
            for name, each in found["accounts"].items()
        ]
        session.render.table(("account", "keys", "refused", "parked"), rows)

    session.render.show(found, human)
    return 0 if found["healthy"] else EXIT_UNHEALTHY


@gateway.command("token", cls=Command, example="orchestra gateway token --attempt try-1 --task docs --task-budget 0.50 --hours 2")
@config_option
@click.option("--attempt", required=True, help="Name of what the token is for.")
@click.option("--task", default="", help="Task it counts for.")
@click.option("--agent", default="", help="Agent it counts for; turns are shared out among agents.")
@click.option("--plan", default="", help="Plan it counts for.")
@click.option("--priority", type=click.IntRange(0, 4), default=3, show_default=True, help="1 critical to 4 low.")
@click.option("--hours", type=click.FloatRange(0, 720, min_open=True), default=24.0, show_default=True, help="How long it is good for.")
@click.option("--task-budget", type=float, help="Dollars the task may cost.")
@click.option("--agent-budget", type=float, help="Dollars the agent may cost.")
@click.option("--plan-budget", type=float, help="Dollars the plan may cost.")
@click.option("--revoke", is_flag=True, help="End the tokens of the attempt instead.")
@click.pass_context
def token(context: click.Context, /, config_path: Path, attempt: str, hours: float, revoke: bool, **given: Any) -> None:
    """Issue a token for an agent, or revoke those of an attempt."""
    session = session_of(context)
    if revoke:
        found = ask(config_path, "revoke", attempt=attempt)
        session.render.show(found, lambda: session.render.note(f"{found['revoked']} tokens revoked"))
        return
    scopes = ("task", "agent", "plan")
    budgets = {scope: usd_micros(value, field=f"{scope}-budget") for scope in scopes if (value := given[f"{scope}_budget"]) is not None}
    names = {name: given[name] for name in (*scopes, "priority")}
    expires_in_ms = max(1, ms_from_seconds(hours * 3600, field="hours"))
    issued = ask(config_path, "issue_token", attempt=attempt, expires_in_ms=expires_in_ms, budgets=budgets, **names)
    session.render.show(issued, lambda: session.render.data(issued["token"]))


@gateway.command("usage", cls=Command, example="orchestra gateway usage --by task")
@config_option
@click.option("--by", type=click.Choice(SCOPES), default="all", show_default=True, help="What to count by.")
@click.option("--name", default="", help="One of them only.")
@click.pass_context
def usage(context: click.Context, config_path: Path, by: str, name: str) -> None:
    """Show requests, tokens and cost."""
    session = session_of(context)
    found = ask(config_path, "usage", by=by, name=name)

    def human() -> None:
        rows = [
            (
                label or "all",
                str(row["requests"]),
                str(row["input_tokens"]),
                str(row["cache_write_tokens"]),
                str(row["cache_read_tokens"]),
                str(row["output_tokens"]),
                show_usd(row["cost_usd_micros"]),
                str(row["assumed_requests"] + row["unpriced_requests"] or ""),
            )
            for label, row in found["usage"].items()
        ]
        session.render.table((by, "requests", "input", "cache write", "cache read", "output", "cost", "uncertain"), rows)

    session.render.show(found, human)


@gateway.command(
    "budget",
    cls=Command,
    example="orchestra gateway budget\norchestra gateway budget task docs --usd 2.50\norchestra gateway budget day --none",
)
@config_option
@budget_arguments
@click.pass_context
def budget(context: click.Context, config_path: Path, scope: str | None, name: str, usd: float | None, lift: bool) -> None:
    """Show budgets, or set or lift one.

    NAME of a day is 2026-01-31; without one it is today (in UTC). What passes a budget is refused or cut off, from the next request on.
    """
    import msgspec

    from orchestra.costviews import BudgetsReply, BudgetView
    from orchestra.edges.cli.cost_text import show_budgets

    session = session_of(context)
    amount = amount_asked(context, scope, usd, lift)
    if amount is not None:
        ask(config_path, "set_budget", scope=scope, name=name, usd_micros=amount)
    rows = msgspec.convert(ask(config_path, "budgets")["budgets"], tuple[BudgetView, ...])
    chosen = tuple(each for each in rows if amount is not None or (scope in (None, each.scope) and name in ("", each.name)))
    reply = BudgetsReply("gateway", "", chosen)
    session.render.show(reply, lambda: show_budgets(session.render, reply))


@gateway.command("reload", cls=Command, example="orchestra gateway reload")
@config_option
@click.pass_context
def reload(context: click.Context, config_path: Path) -> None:
    """Read the file and all keys again, as SIGHUP does.

    Requests on their way go on as they began. Where the file cannot hold, nothing is changed.
    """
    session = session_of(context)
    session.render.show(ask(config_path, "reload"), lambda: session.render.note("configuration and keys were read again"))


@gateway.command("stop", cls=Command, example="orchestra gateway stop")
@config_option
@click.pass_context
def stop(context: click.Context, config_path: Path) -> None:
    """End the gateway, as SIGTERM does: it takes no new requests and waits for those on their way."""
    session = session_of(context)
    session.render.show(
        ask(config_path, "stop"), lambda: session.render.note("the gateway ends when the requests on their way are answered")
    )


@gateway.command("limits", cls=Command, example="orchestra gateway limits --json")
@config_option
@click.pass_context
def limits(context: click.Context, config_path: Path) -> None:
    """Show the limits as they stand, those learned from the providers included."""
    session = session_of(context)
    found = ask(config_path, "limits")

    def human() -> None:
        rows = [
            (
                f"{lane['upstream']}.{lane['account']}",
                lane["model_class"],
                limit["name"],
                str(limit["limit"]),
                f"{limit['used_percent']}%",
                str(limit["left"]),
                str(limit.get("foreign") or ""),
                f"{lane['in_flight']}/{lane['concurrency']}",
                str(lane["waiting"]),
                show_ms(max(lane["closed_ms"], lane["parked_ms"])),
            )
            for lane in found["lanes"]
            for limit in lane["limits"] or [{"name": "none known", "limit": "-", "used_percent": 0, "left": "-"}]
        ]
        session.render.table(("account", "models", "limit", "a minute", "used", "left", "others", "on way", "waiting", "closed"), rows)

    session.render.show(found, human)


@gateway.command("events", cls=Command, example="orchestra gateway events --follow")
@config_option
@click.option("--after", "cursor", type=click.IntRange(0), default=0, help="Cursor: the number of the last event that was seen.")
@click.option("--follow", is_flag=True, help="Go on until interrupted.")
@click.pass_context
def events(context: click.Context, config_path: Path, cursor: int, follow: bool) -> None:
    """Show warnings of limits and budgets, parked accounts and refused keys, a line each."""
    session = session_of(context)
    while True:
        found = ask(config_path, "events", cursor=cursor, wait_ms=EVENTS_WAIT_MS if follow else 0)
        for event in found["events"]:
            if session.json:
                session.render.json(event)
            else:
                at = time.strftime("%H:%M:%S", time.gmtime(event["ms"] / 1000))
                session.render.data(f"{at} {event['kind']:<16} {' '.join(f'{name}={value}' for name, value in event['fields'].items())}")
        cursor = found["cursor"]
        if not follow:
            return
