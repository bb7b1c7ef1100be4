"""The administration: JSON-RPC lines on a Unix socket that only its owner may open. No answer holds a key, and a token only the one that issued it.

Methods: `issue_token`, `revoke`, `tokens`, `usage`, `limits`, `budgets`, `set_budget`, `forget_budgets`, `events`, `health`, `reload`, `drain`, `stop`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from orchestra.errors import FACES, BadInput, OrchestraError, PortFailed, ProtocolBroken
from orchestra.files import private_server, socket_address
from orchestra.gateway.reading import budget_rows, day_number, usage_rows
from orchestra.intake.document import show_path
from orchestra.intake.shape import convert
from orchestra.metering.books import BUDGETED, Who, day_of

if TYPE_CHECKING:
    from orchestra.gateway.service import Gateway

log = logging.getLogger(__name__)

LINE_BYTES_MAX: Final = 16 << 20
ANSWER_BYTES_MAX: Final = 64 << 20
"""The usage of a hundred thousand tasks is half of that."""
WAIT_MS_MAX: Final = 60_000
CONNECTIONS_MAX: Final = 64
Text = Annotated[str, Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Micros = Annotated[int, Meta(ge=-1, le=10**16)]
P = TypeVar("P", bound=msgspec.Struct)


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what a method takes."""


class IssueToken(Params, frozen=True, kw_only=True):
    """For whom, how long, and what may be spent."""

    attempt: Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
    task: Text = ""
    agent: Text = ""
    plan: Text = ""
    priority: Annotated[int, Meta(ge=0, le=4)] = 3
    expires_in_ms: Annotated[int, Meta(ge=1, le=30 * 86_400_000)] = 86_400_000
    free_of_day: bool = False
    """The budget of the day does not hold for it; what it costs is counted all the same."""
    free_of: list[str] = []
    """Further scopes of which the budgets do not hold for it."""
    budgets: dict[str, Micros] = {}
    """`task`, `agent` or `plan` -> micro-dollars; -1 lifts one."""
    keep_budgets: bool = False
    """A scope for which a budget was set or lifted stays so."""


class Revoke(Params, frozen=True, kw_only=True):
    """All tokens of an attempt, or one token."""

    attempt: Text = ""
    token: Text = ""


class UsageOf(Params, frozen=True, kw_only=True):
    """Which scope, and which of its names; without a name all of them."""

    by: str = "all"
    name: Text = ""


class SetBudget(Params, frozen=True, kw_only=True):
    """A budget of a scope; a day is named `2026-01-31`, and is today without a name."""

    scope: str
    name: Text = ""
    usd_micros: Micros


class BudgetsOf(Params, frozen=True, kw_only=True):
    """Which budgets; without either all of them."""

    of: Annotated[list[tuple[str, str]], Meta(max_length=100_000)] | None = None
    """(scope, name), of days only today's."""
    spent: bool = False
    """Only those of which all is used, of days only today's."""


class ForgetBudgets(Params, frozen=True, kw_only=True):
    """Scopes that are over; what was spent stays counted."""

    scope: str
    names: Annotated[list[Text], Meta(max_length=100_000)]


class EventsAfter(Params, frozen=True, kw_only=True):
    """What came after a cursor; waits a while if there is nothing."""

    cursor: int = 0
    limit: Annotated[int, Meta(ge=1, le=10_000)] = 1_000
    wait_ms: Annotated[int, Meta(ge=0, le=WAIT_MS_MAX)] = 0


class Nothing(Params, frozen=True, kw_only=True):
    """No parameters."""


class AdminServer:
    """Serves the administration."""

    def __init__(self, gateway: Gateway, path: Path) -> None:
        self._gateway = gateway
        self._path = path
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._methods: dict[str, tuple[type[Params], Callable[[Any], Any]]] = {
            "issue_token": (IssueToken, self._issue_token),
            "revoke": (Revoke, self._revoke),
            "tokens": (Nothing, self._tokens),
            "usage": (UsageOf, self._usage),
            "limits": (Nothing, self._limits),
            "budgets": (BudgetsOf, self._budgets),
            "set_budget": (SetBudget, self._set_budget),
            "forget_budgets": (ForgetBudgets, self._forget_budgets),
            "events": (EventsAfter, self._events),
            "health": (Nothing, self._health),
            "reload": (Nothing, self._reload),
            "drain": (Nothing, self._drain),
            "stop": (Nothing, self._stop),
        }

    async def start(self) -> None:
        """Begins to listen.

        Raises:
            PortFailed: The socket cannot be made.
        """
        try:
            self._server = await private_server(self._path, self._accept, LINE_BYTES_MAX)
        except OSError as exc:
            raise PortFailed(f"the socket {self._path} cannot be made: {exc.strerror or exc}", hint="choose a shorter folder") from exc

    async def stop(self) -> None:
        """Ends all connections and removes the socket. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            writer.close()
            return
        task = asyncio.create_task(self._converse(reader, writer), name="gateway-admin")
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                writer.write(await self._answer(line) + b"\n")
                await writer.drain()
        except (OSError, ValueError):
            return
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> bytes:
        number: Any = None
        try:
            try:
                request = msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, RecursionError) as exc:
                raise ProtocolBroken("the request is not a JSON object", hint="send one object a line") from exc
            number = request.get("id")
            result = await self._result(request)
            return msgspec.json.encode({"jsonrpc": "2.0", "id": number, "result": result})
        except OrchestraError as error:
            data = {"code": error.code, "field": error.field, "hint": error.hint}
            face = {"code": FACES[error.code].jsonrpc, "message": error.message, "data": data}
            return msgspec.json.encode({"jsonrpc": "2.0", "id": number, "error": face})

    async def _result(self, request: dict[str, Any]) -> Any:
        method = self._methods.get(str(request.get("method")))
        if method is None:
            hint = "use " + ", ".join(self._methods)
            raise BadInput(f"there is no method {str(request.get('method'))[:40]!r}", field="method", hint=hint)
        kind, function = method
        result = function(parsed(request.get("params") or {}, kind))
        return await result if asyncio.iscoroutine(result) else result

    # ---- methods ---------------------------------------------------------------------------------------------------------

    def _issue_token(self, params: IssueToken) -> Any:
        desk = self._gateway.desk
        who = Who(params.attempt, params.task, params.agent, params.plan, params.priority, params.free_of_day, tuple(params.free_of))
        expires_ms = desk.clock.wall_ms() + params.expires_in_ms
        return {
            "token": desk.issue(who, expires_ms, params.budgets, keep=params.keep_budgets),
            "expires_ms": expires_ms,
            "port": self._gateway.port,
        }

    def _revoke(self, params: Revoke) -> Any:
        if not params.attempt and not params.token:
            raise BadInput("nothing says what is to be revoked", field="attempt", hint="name an attempt or a token")
        return {"revoked": self._gateway.desk.revoke(params.attempt, params.token)}

    def _tokens(self, _: Nothing) -> Any:
        tokens = self._gateway.desk.journal.books.state.tokens
        return {"attempts": sorted({issued.who.attempt for issued in tokens.values()})}

    def _usage(self, params: UsageOf) -> Any:
        rows = usage_rows(self._gateway.desk.journal.books, params.by, params.name)
        return {"by": params.by, "usage": rows, "prices_made": self._gateway.desk.prices.made}

    def _limits(self, _: Nothing) -> Any:
        desk = self._gateway.desk
        now_ms = desk.clock.steady_ms()
        lanes = [
            {
                "upstream": place.upstream,
                "account": place.account,
                "model_class": place.model_class,
                "waiting": lane.waiting,
                "in_flight": lane.group.ramp.in_flight,
                "concurrency": lane.group.ramp.allowed,
                "closed_ms": max(0, lane.group.closed_until_ms - now_ms),
                "refusals": lane.group.refusals,
                "parked_ms": desk.parked_ms(place.upstream, place.account),
                "limits": [msgspec.to_builtins(view) for view in lane.group.view(now_ms)],
            }
            for place, lane in desk.limiter.lanes.items()
        ]
        return {"lanes": lanes, "upstreams_down": [name for name, breaker in desk.breakers.items() if breaker.is_open]}

    def _budgets(self, params: BudgetsOf) -> Any:
        desk = self._gateway.desk
        return {"budgets": budget_rows(desk.journal.books, desk.clock.wall_ms(), params.of, spent=params.spent)}

    def _forget_budgets(self, params: ForgetBudgets) -> Any:
        return {"forgotten": self._gateway.desk.forget_budgets(params.scope, params.names)}

    def _set_budget(self, params: SetBudget) -> Any:
        desk = self._gateway.desk
        if params.scope not in BUDGETED:
            raise BadInput(f"{params.scope[:40]!r} has no budget", field="scope", hint="use " + ", ".join(BUDGETED))
        if params.scope == "day":
            name = day_number(params.name, "name") if params.name else str(day_of(desk.clock.wall_ms()))
        elif params.name:
            name = params.name
        else:
            raise BadInput("nothing says whose budget", field="name", hint=f"name the {params.scope}")
        desk.set_budget(params.scope, name, params.usd_micros)
        return {}

    async def _events(self, params: EventsAfter) -> Any:
        notices = self._gateway.desk.notices
        if params.wait_ms:
            await notices.wait(params.cursor, params.wait_ms)
        found = notices.after(params.cursor, params.limit)
        return {"events": [msgspec.to_builtins(notice) for notice in found], "cursor": found[-1].seq if found else max(params.cursor, 0)}

    def _health(self, _: Nothing) -> Any:
        desk = self._gateway.desk
        accounts = {
            f"{upstream}.{name}": {
                "keys": len(account.keys),
                "keys_refused": sum(key.quarantined for key in account.keys),
                "parked_ms": desk.parked_ms(upstream, name),
            }
            for upstream, each in desk.accounts.items()
            if not each.upstream.pass_through
            for name, account in each.by_name.items()
        }
        logins = {
            f"{upstream}.{name}": {"keys": 0, "keys_refused": 0, "parked_ms": desk.parked_ms(upstream, name)}
            for upstream, name in desk.logins()
        }
        down = [name for name, breaker in desk.breakers.items() if breaker.is_open]
        healthy = (
            not down
            and not desk.draining
            and not desk.journal.broken
            and all(each["keys"] > each["keys_refused"] for each in accounts.values())
        )
        return {
            "healthy": healthy,
            "port": self._gateway.port,
            "pid": os.getpid(),
            "draining": desk.draining,
            "connections": self._gateway.connections(),
            "open": desk.open,
            "served": desk.served,
            "recovered": self._gateway.recovered,
            "journal_spoilt": desk.journal.spoilt,
            "journal_broken": desk.journal.broken,
            "tokens": len(desk.journal.books.state.tokens),
            "upstreams_down": down,
            "accounts": accounts | logins,
            "cursor": desk.notices.last,
        }

    async def _reload(self, _: Nothing) -> Any:
        await self._gateway.reload()
        return {}

    async def _drain(self, _: Nothing) -> Any:
        return {"left": await self._gateway.drain()}

    def _stop(self, _: Nothing) -> Any:
        self._gateway.stopping.set()
        return {}


def parsed(values: object, kind: type[P]) -> P:
    """Returns a method's parameters.

    Raises:
        BadInput: They are not what it takes; `field` says which.
    """
    made = convert(values, kind)
    if isinstance(made, list):
        raise BadInput(made[0].message, field=show_path(made[0].path), hint=made[0].hint)
    return made


async def ask_admin(path: Path, method: str, params: dict[str, Any] | None = None) -> Any:
    """Returns what a running gateway answers.

    Raises:
        PortFailed: None is running there.
        OrchestraError: What it refused with.
    """
    try:
        with socket_address(path) as address:
            reader, writer = await asyncio.open_unix_connection(address, limit=ANSWER_BYTES_MAX)
    except OSError as exc:
        raise PortFailed(f"no gateway answers at {path}", hint="start one with `orchestra gateway run`") from exc
    try:
        writer.write(msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}) + b"\n")
        line = await reader.readline()
    except OSError as exc:
        raise PortFailed(f"the gateway at {path} went away", hint="see its log") from exc
    finally:
        writer.close()
    if not line.endswith(b"\n"):
        raise PortFailed(f"the gateway at {path} went away", hint="see its log")
    answer = msgspec.json.decode(line, type=dict[str, Any])
    if "error" in answer:
        error = answer["error"]
        kind = BadInput if error["data"]["code"] in {"bad_input", "settings_invalid"} else PortFailed
        raise kind(error["message"], field=error["data"]["field"], hint=error["data"]["hint"])
    return answer["result"]
