"""One request from its turn in the queue to its settlement. The gateway is the only one that tries again, and only before the first byte of an answer.

A try ends in one of five verdicts (`metering.retry`):
- fine: the answer is relayed, also an error that is the request's own fault;
- pace: the bucket group closes until the provider takes more; this request queues again. Waiting as told is no failed try;
- spent: the account is parked; another one is used if the configuration allows it;
- key: the key is read again from its place, or left out from now on;
- trouble: counted for the breaker, tried again after a pause that doubles.

What a budget does not bear is refused at once if it would not fit with nothing else open. Where others hold what is left it gives its turn back and waits.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from typing import Final

import aiohttp
import msgspec
from aiohttp import web

from orchestra.errors import PortFailed
from orchestra.gateway.accounts import Account, Key, renew
from orchestra.gateway.desk import ANONYMOUS, Desk
from orchestra.gateway.limiter import Place, QueueFull
from orchestra.gateway.relay import Broken, Relay, read_error, without_key, words_of
from orchestra.gateway.replies import NO_RETRY, Reply, busy, reply, spent, unavailable
from orchestra.gateway.routes import Route
from orchestra.gateway.upstream import Upstreams, request_headers
from orchestra.metering.books import Opened, Overspent, Who
from orchestra.metering.claims import Claim
from orchestra.metering.formulas import COUNTING, FORMULAS, Charge, model_class, reserve
from orchestra.metering.group import Group, Reservation
from orchestra.metering.headers import Report
from orchestra.metering.lane import Ticket
from orchestra.metering.retry import RETRY_AFTER_MS_MAX, UPSTREAM_FAILED, Verdict, group_pause_ms, pause_ms, verdict_of
from orchestra.metering.usage import Estimate, Usage, mode_of
from orchestra.protocol.http_limits import parse_limits
from orchestra.protocol.usage_request import Asked
from orchestra.secret import Secret

SENDS_MAX: Final = 40
"""Of one request, whatever the reasons."""
QUICK_MS: Final = 1_000
"""An upstream that hangs up so soon has not begun to answer, so nothing is billed."""
LOGIN_CHARS: Final = 8
BUSY_MS: Final = 10_000
"""After which a client may ask again for a budget that others hold."""


class Order(msgspec.Struct, frozen=True):
    """What is to be done."""

    request: web.BaseRequest
    route: Route
    kind: str
    who: Who
    body: bytes
    asked: Asked


class Held(msgspec.Struct):
    """A turn that came: where, with what, and since when."""

    place: Place
    ticket: Ticket
    reservation: Reservation
    account: Account | None
    key: Key | None
    secret: Secret | None = None
    """The key as it was sent; it may have been changed since."""
    sent_ms: int = 0
    probe: bool = False


class Exchange:
    """Works on one request."""

    def __init__(self, desk: Desk, upstreams: Upstreams, order: Order) -> None:
        self.desk = desk
        self.order = order
        self._upstreams = upstreams
        self._started_ms = desk.clock.steady_ms()
        self._deadline_ms = self._started_ms + min(desk.config.queue_ms, client_patience_ms(order.request))
        upstream = desk.config.upstreams[order.route.upstream]
        self._passes = upstream.pass_through
        self._class = self._model_class(upstream.classes)
        self._conversation = conversation_of(order)
        self._sessions = sessions_of(order)
        self.estimate = self._estimate()
        self.opened: Opened | None = None
        self.tries = 0
        self._failures = 0
        self._paced = 0
        """Refusals for its pace that it waited out by itself."""
        self._pause_ms = 0
        """To be waited before the next try, with nothing held."""
        self._lost = 0
        """Tries of which nobody knows whether they are billed: sent, and not answered yet or ever."""
        self._last: Reply | None = None
        """The provider's own last refusal."""
        self._last_paced = False
        """It was one for the pace, which is over some time."""
        self._claim: Claim | None = None
        """What it waits for of its budgets, or was promised of them."""
        self._short: Overspent | None = None
        """The budget of which others hold what it needs."""

    def _model_class(self, classes: dict[str, str]) -> str:
        if not self.order.route.costs:
            return COUNTING if self.order.route.form == "counting" else "other"
        for pattern, name in classes.items():
            if re.fullmatch(pattern, self.order.asked.model):
                return name
        return model_class(self.order.kind, self.order.asked.model)

    def _estimate(self) -> Estimate:
        if not self.order.route.costs:
            return Estimate(0, 0, 0, 0)
        asked = self.order.asked
        return self.desk.estimator.estimate(self._conversation, asked.model, asked.prompt_bytes, asked.output_tokens_max)

    @property
    def expected(self) -> Usage:
        """What it is thought to use, for the books."""
        return Usage(
            input_tokens=self.estimate.input_tokens,
            cache_read_tokens=self.estimate.cache_read_tokens,
            output_tokens=self.estimate.output_tokens,
            mode=mode_of(self.order.asked.modes),
        )

    def _left_ms(self) -> int:
        return max(0, self._deadline_ms - self.desk.clock.steady_ms())

    async def run(self) -> web.StreamResponse | Reply:
        """Returns the answer, given already or to be given."""
        try:
            while True:
                turn = await self._turn()
                if isinstance(turn, Reply):
                    return self._give_up(turn)
                done = await self._try(turn)
                if done is not None:
                    return done
                if self._short is not None and (refused := await self._budget_bears(self._short)) is not None:
                    return refused
                if self._pause_ms:
                    await self.desk.clock.sleep_ms(self._pause_ms)
                    self._pause_ms = 0
                if self.tries >= SENDS_MAX:
                    return self._give_up(unavailable(self.order.kind, "orchestra: the provider refused too often", 30_000))
        except PortFailed as error:
            return unavailable(self.order.kind, f"orchestra: {error.message}", 10_000)
        finally:
            self.settle(0, Usage(), assumed=False)
            self.desk.purse.drop(self._claim)

    def _give_up(self, own: Reply) -> Reply:
        """Returns the provider's last word if there is one, with the wish not to be asked again: that was done here already. A refusal for the pace goes
        back as it came, since whoever asks again queues again, and asks the provider no more often than all others together may."""
        if self._last is None:
            return own
        if self._last_paced and NO_RETRY not in own.headers:
            told = any(name.lower() == "retry-after" for name, _ in self._last.headers)
            wait = () if told else tuple(each for each in own.headers if each[0] == "retry-after")  # without one Codex does not ask again
            return msgspec.structs.replace(self._last, headers=(*self._last.headers, *wait))
        headers = tuple((name, value) for name, value in self._last.headers if name.lower() != NO_RETRY[0])
        return msgspec.structs.replace(self._last, headers=(*headers, NO_RETRY))

    # ---- the turn --------------------------------------------------------------------------------------------------------

    async def _turn(self) -> Held | Reply:
        """Waits until the limits, the breaker and the budgets let the request go."""
        desk, order = self.desk, self.order
        if order.route.upstream not in desk.config.upstreams:
            return unavailable(order.kind, "orchestra: this upstream is no longer configured", 30_000)
        account: Account | None = None
        name = self._login()
        if self._passes:
            desk.saw_login(order.route.upstream, name)
        else:
            account = desk.choose(order.route.upstream, self._sessions, self._class)
            if account is None and await desk.accounts[order.route.upstream].revive(desk.clock.steady_ms()):
                account = desk.choose(order.route.upstream, self._sessions, self._class)
            if account is None:
                return unavailable(order.kind, "orchestra: no key of this provider is accepted at present", 30_000)
            name = account.name
        parked_ms = desk.parked_ms(order.route.upstream, name)
        if parked_ms > self._left_ms():
            answer = busy(order.kind, f"orchestra: the account {name} has nothing left for {parked_ms // 1000} s", parked_ms)
            return msgspec.structs.replace(answer, headers=(*answer.headers, NO_RETRY))
        if parked_ms:
            await desk.clock.sleep_ms(parked_ms)
        if (refused := self._over_budget()) is not None:
            return refused
        if not await self._breaker_lets_go():
            return unavailable(order.kind, "orchestra: the provider does not answer at present", 30_000)
        if order.route.upstream not in desk.config.upstreams:
            return await self._turn()
        place = desk.limiter.place(order.route.upstream, name, self._class)
        closed_ms = desk.limiter.lane(place).group.closed_until_ms - desk.clock.steady_ms()
        if closed_ms > self._left_ms():
            return busy(order.kind, f"orchestra: the provider takes nothing for {closed_ms // 1000} s", closed_ms)
        group = desk.limiter.lane(place).group
        charge = reserve(FORMULAS[order.kind], self.estimate)
        flow = order.who.agent or (order.who.attempt if order.who is not ANONYMOUS else name)
        ticket = Ticket(flow, order.who.priority, charge, self.estimate.weight, self._started_ms, recount=lambda: self._charge(group))
        try:
            reservation = await desk.limiter.acquire(place, ticket, self._left_ms())
        except QueueFull:
            return busy(order.kind, "orchestra: too many requests wait already", 10_000)
        except TimeoutError:
            if desk.parked_ms(order.route.upstream, name):
                return await self._turn() if self._left_ms() else busy(order.kind, "orchestra: the account has nothing left", 60_000)
            wait_ms = desk.limiter.lane(place).group.wait_ms(charge, desk.clock.steady_ms())
            return busy(order.kind, "orchestra: the turn did not come in time", max(wait_ms, 1_000))
        if account is None:
            return Held(place, ticket, reservation, None, None)
        held = self._with_key(place, ticket, reservation)
        return held if held is not None else await self._turn()

    def _charge(self, group: Group) -> Charge:
        """Returns what it is to reserve by what is known at this moment."""
        if not self.order.route.costs:
            return reserve(group.formula, self.estimate)
        return group.charge_of(self.desk.estimator.renewed(self.estimate, self.order.asked.model))

    def _with_key(self, place: Place, ticket: Ticket, reservation: Reservation) -> Held | None:
        """Takes a key for the turn from the accounts as they are now: a reload may have changed keys and the address that they are for meanwhile. None
        gives the turn back."""
        accounts = self.desk.accounts.get(place.upstream) if place.upstream in self.desk.config.upstreams else None
        account = None if accounts is None else accounts.by_name.get(place.account)
        key = None if account is None else account.next_key()
        if key is not None:
            return Held(place, ticket, reservation, account, key)
        self.desk.limiter.lane(place).group.settle_unsent(reservation, self.desk.clock.steady_ms())
        self.desk.limiter.release(place, ticket, served=False)
        return None

    def _login(self) -> str:
        """Returns a name for the client's own login that does not tell it."""
        headers = self.order.request.headers
        shown = headers.get("authorization", "") or headers.get("x-api-key", "") or headers.get("x-goog-api-key", "")
        return "login-" + hashlib.sha256(shown.encode("utf-8", "surrogateescape")).hexdigest()[:LOGIN_CHARS]

    def _over_budget(self) -> Reply | None:
        """Refuses what would not fit with nothing else open; who is only in the way of others waits later, with no turn held."""
        if not self.order.route.costs or self.opened is not None:
            return None
        desk, order = self.desk, self.order
        cost = desk.cost_of(order.kind, order.asked.model, self.expected)
        overspent = desk.journal.books.overspent(order.who, cost, desk.clock.wall_ms())
        return spent(order.kind, desk.tell_overspent(order.who, overspent)) if overspent is not None and overspent.for_good else None

    async def _budget_bears(self, short: Overspent) -> Reply | None:
        """Waits until what others reserved is settled; returns what the client is told if that took too long. It may ask again."""
        desk, order = self.desk, self.order
        self._short = None
        if self._claim is None:
            cost = desk.cost_of(order.kind, order.asked.model, self.expected)
            self._claim = Claim(order.who, order.who.agent or order.who.attempt, cost, self._started_ms)
        if await desk.purse.wait(self._claim, self._left_ms()):
            return None
        desk.notices.tell("budget_busy", attempt=order.who.attempt, scope=short.scope, name=short.name)
        return busy(order.kind, f"orchestra: requests on their way hold what is left of the budget of this {short.scope}", BUSY_MS)

    async def _breaker_lets_go(self) -> bool:
        breaker = self.desk.breakers[self.order.route.upstream]
        while (wait_ms := breaker.wait_ms(self.desk.clock.steady_ms())) > 0:
            if wait_ms > self._left_ms():
                return False
            await self.desk.clock.sleep_ms(wait_ms)
        return True

    # ---- one try ---------------------------------------------------------------------------------------------------------

    async def _try(self, held: Held) -> web.StreamResponse | Reply | None:
        """Sends it once; None means that it is to be sent again."""
        group = self.desk.limiter.lane(held.place).group
        sent, served, lost = False, True, self._lost
        try:
            if (refused := self._open(held)) is not None:
                return refused
            if self._short is not None:
                served = False
                return None
            breaker = self.desk.breakers[self.order.route.upstream]
            if breaker.wait_ms(self.desk.clock.steady_ms()) > 0:
                served = False
                return None
            self.desk.note_taken(held.place, held.reservation.charge)
            held.probe, held.sent_ms, sent = breaker.started(), self.desk.clock.steady_ms(), True
            self.tries += 1
            done = await self._send(held)
            served = done is not None
            return done
        finally:
            now_ms = self.desk.clock.steady_ms()
            if held.probe:
                self.desk.breakers[self.order.route.upstream].abandoned()
            if self._lost > lost:
                group.settle(held.reservation, self.expected, now_ms)
            elif sent:
                group.settle_refused(held.reservation, now_ms)
            else:
                group.settle_unsent(held.reservation, now_ms)
            self.desk.note_later(held.place)
            self.desk.limiter.release(held.place, held.ticket, served=served)

    def _open(self, held: Held) -> Reply | None:
        if self.opened is not None or not self.order.route.costs:
            return None
        order = self.order
        opened = self.desk.open_request(order.who, held.place, order.kind, order.asked.model, self.expected, self._claim)
        if isinstance(opened, Opened):
            self.opened, self._claim = opened, None
        elif opened.for_good:
            return spent(order.kind, self.desk.tell_overspent(order.who, opened))
        else:
            self._short = opened
        return None

    async def _send(self, held: Held) -> web.StreamResponse | Reply | None:
        order, request = self.order, self.order.request
        held.secret = None if held.key is None else held.key.secret
        auth = None if held.account is None or held.secret is None else held.account.header(held.secret)
        headers = request_headers(request.raw_headers, auth, plain=order.asked.stream)
        body = order.body if order.body or request.method == "POST" else None
        bounds = self.desk.config.bounds
        self._lost += 1
        try:
            async with asyncio.timeout(bounds.first_byte_seconds + len(order.body) / 32_768):
                response = await self._upstreams.send(order.route.upstream, request.method, order.route.target, headers, body)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
            self._lost -= 1
            return self._trouble(held, None, f"the provider cannot be reached: {type(exc).__name__}")
        except TimeoutError:
            return self._trouble(held, None, "the provider did not answer in time")
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            self._lost -= self.desk.clock.steady_ms() - held.sent_ms <= QUICK_MS
            return self._trouble(held, None, f"the provider's answer was broken: {type(exc).__name__}")
        try:
            return await self._answered(held, response)
        finally:
            response.close()

    async def _answered(self, held: Held, response: aiohttp.ClientResponse) -> web.StreamResponse | Reply | None:
        report = parse_limits(response.headers.items(), self.desk.clock.wall_ms())
        self.desk.limiter.lane(held.place).group.learn(report, held.reservation, self.desk.clock.steady_ms())
        self.desk.tell_limits(held.place, report)
        if 300 <= response.status < 400 and response.status != 304:
            self._lost -= 1
            self._recovered()
            return reply(self.order.kind, 502, "orchestra: the provider redirects elsewhere, which is not followed", NO_RETRY)
        if response.status < 400:
            return await self._relay(held, response)
        failed = await read_error(response)
        if failed is None:
            return await self._relay(held, response)
        self._lost -= 1
        verdict = verdict_of(response.status, report, words_of(failed))
        failed = without_key(failed, held.secret)
        if response.status not in UPSTREAM_FAILED:
            self._recovered()
        if verdict is not Verdict.KEY or self._passes:
            self._last, self._last_paced = failed, verdict is Verdict.PACE
        match verdict:
            case Verdict.PACE:
                return self._pace(held, report)
            case Verdict.SPENT:
                return self._spent(held, report, failed)
            case Verdict.KEY if not self._passes:
                return await self._key(held, response.status)
            case Verdict.TROUBLE:
                return self._trouble(held, report, "")
            case _:
                self.settle(response.status, Usage(), assumed=False)
                return failed

    async def _relay(self, held: Held, response: aiohttp.ClientResponse) -> web.StreamResponse | Reply | None:
        relay = Relay(self, held, response)
        try:
            first = await relay.first()
        except Broken as exc:
            return self._trouble(held, None, str(exc))
        self._lost -= 1
        self._recovered()
        group = self.desk.limiter.lane(held.place).group
        if response.status < 400:
            group.went_well()
        return await relay.run(first)

    def _recovered(self) -> None:
        if self.desk.breakers[self.order.route.upstream].succeeded():
            self.desk.notices.tell("upstream_back", upstream=self.order.route.upstream)

    # ---- verdicts --------------------------------------------------------------------------------------------------------

    def _pace(self, held: Held, report: Report) -> Reply | None:
        """Too fast. If the provider says for how long, or refuses nearly everything, the whole group waits, then starts with half of what it had on its way;
        otherwise this request alone waits. It is no failed try: as long as there is time it comes again. Nobody changes the account."""
        desk = self.desk
        group = desk.limiter.lane(held.place).group
        now_ms = desk.clock.steady_ms()
        told = None if report.retry_after_ms is None else min(report.retry_after_ms, RETRY_AFTER_MS_MAX)
        grows = desk.config.retry.multiplier
        if not told and not group.ramp.mostly_refused:
            self._paced += 1
            wait_ms = self._pause_ms = group_pause_ms(self._paced, told, desk.chance(), grows)
            group.slow_down()
        else:
            wait_ms = group_pause_ms(group.refusals + 1, told, desk.chance(), grows)
            if group.closed_until_ms <= now_ms:
                place = {"upstream": held.place.upstream, "account": held.place.account, "model_class": self._class}
                desk.notices.tell("limited", **place, wait_ms=wait_ms)
            group.close_until(now_ms + wait_ms, now_ms)
        if wait_ms > self._left_ms() or report.should_retry is False:
            own = busy(self.order.kind, "orchestra: the provider's limit is reached", wait_ms)
            final = wait_ms > desk.config.queue_ms or report.should_retry is False  # whoever asks again would be told the same
            return self._give_up(msgspec.structs.replace(own, headers=(*own.headers, NO_RETRY)) if final else own)
        return None

    def _spent(self, held: Held, report: Report, failed: Reply) -> Reply | None:
        """The account has nothing left. Another one takes over if that is allowed; else the provider's own words go back."""
        upstream = self.order.route.upstream
        self.desk.park(upstream, held.place.account, report, f"status {failed.status}")
        accounts = self.desk.accounts.get(upstream)
        others = () if accounts is None or not accounts.upstream.other_account_when_spent else tuple(accounts.by_name.values())
        if not self._passes and any(account.usable and not self.desk.parked_ms(upstream, account.name) for account in others):
            return None
        self.settle(failed.status, Usage(), assumed=False)
        return self._give_up(failed)

    async def _key(self, held: Held, status: int) -> Reply | None:
        """The key is not taken. Its place may hold a newer one; if not it is left out, and the client never hears of it."""
        assert held.key is not None
        assert held.secret is not None
        if await renew(held.key, held.secret, self.desk.clock.steady_ms()) == "left_out":
            where = {"upstream": held.place.upstream, "account": held.place.account, "key": held.key.source.name}
            self.desk.notices.tell("key_quarantined", status=status, **where)
        return None

    def _trouble(self, held: Held, report: Report | None, words: str) -> Reply | None:
        """The provider's own trouble: again after a pause, if there is time."""
        desk, order = self.desk, self.order
        now_ms = desk.clock.steady_ms()
        if desk.breakers[order.route.upstream].failed(now_ms, probe=held.probe):
            desk.notices.tell("upstream_down", upstream=order.route.upstream)
        if words:
            self._last, self._last_paced = unavailable(order.kind, f"orchestra: {words}", 10_000), False
        self._failures += 1
        wait_ms = pause_ms(self._failures, None if report is None else report.retry_after_ms, desk.chance(), desk.config.retry.multiplier)
        unwanted = report is not None and report.should_retry is False
        if unwanted or self._failures >= desk.config.retry.tries or wait_ms > self._left_ms():
            return self._give_up(unavailable(order.kind, "orchestra: the provider does not answer", 30_000))
        self._pause_ms = wait_ms
        return None

    # ---- the end ---------------------------------------------------------------------------------------------------------

    def settle_limits(self, held: Held, usage: Usage) -> None:
        """Puts what was used in the place of what was reserved of the limits."""
        self.desk.limiter.lane(held.place).group.settle(held.reservation, usage, self.desk.clock.steady_ms())

    def settle(self, status: int, usage: Usage, *, assumed: bool) -> None:
        """Closes the request in the books. Idempotent."""
        opened, self.opened = self.opened, None
        if opened is None:
            return
        if self._lost:
            usage = msgspec.structs.replace(usage, input_tokens=usage.input_tokens + self._lost * self.estimate.input_tokens)
        self.desk.close_request(opened, self.order.kind, status, usage, assumed=assumed or self._lost > 0, tries=self.tries)
        if not assumed and not self._lost and usage.prompt_tokens:
            self.desk.estimator.learn(self._conversation, opened.model, self.order.asked.prompt_bytes, usage)
        elif usage.output_tokens:
            self.desk.estimator.learn_assumed(opened.model, usage.output_tokens)


def client_patience_ms(request: web.BaseRequest) -> int:
    """Returns how long the client waits for an answer, if it says so."""
    text = request.headers.get("x-stainless-timeout", "")
    return int(text) * 1000 if text.isascii() and text.isdigit() and 0 < len(text) < 7 and int(text) else 3_600_000


def sessions_of(order: Order) -> tuple[str, ...]:
    """Returns what a session is known by that should stay on one account, as its prompts are cached there: the client's own name for it, which a resumed one
    keeps, and the task, which is the same when it is tried again."""
    own = session_of(order)
    return (*((f"session {own}",) if own else ()), f"task {order.who.task}" if order.who.task else f"attempt {order.who.attempt}")


def session_of(order: Order) -> str:
    """Returns what the client calls its session, or nothing."""
    headers = order.request.headers
    return (headers.get("x-claude-code-session-id", "") or headers.get("session-id", ""))[:64]


def conversation_of(order: Order) -> str:
    """Returns a name for what repeats itself from request to request: the attempt, and what the client calls its session and sub-agent."""
    parts = (session_of(order), order.request.headers.get("x-claude-code-agent-id", ""))
    return "|".join((order.who.attempt, *(part[:64] for part in parts)))
