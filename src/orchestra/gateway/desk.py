"""What all requests share: who may ask, what it costs, whether a budget bears it, and what is known about accounts and upstreams."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from orchestra.clock import Clock
from orchestra.errors import BadInput, PortFailed
from orchestra.gateway.accounts import Account, Accounts
from orchestra.gateway.config import GatewayConfig
from orchestra.gateway.journal import Journal
from orchestra.gateway.limiter import Limiter, Place
from orchestra.gateway.notices import Notices
from orchestra.gateway.purse import Purse
from orchestra.gateway.reading import day_name
from orchestra.gateway.upstream import TOKEN_PREFIX
from orchestra.metering.books import BUDGETED, BudgetSet, BudgetsForgotten, Closed, Grown, Issued, Opened, Overspent, Revoked, Who, day_of
from orchestra.metering.breaker import Breaker
from orchestra.metering.claims import Claim
from orchestra.metering.estimates import Estimator
from orchestra.metering.formulas import Charge
from orchestra.metering.group import CALM_PERCENT, WARN_PERCENT
from orchestra.metering.headers import Report
from orchestra.metering.marks import LaneAt, ParkedAt
from orchestra.metering.prices import Prices, Quote, cost_usd_micros
from orchestra.metering.usage import Usage
from orchestra.quantity import show_usd

log = logging.getLogger(__name__)

TOKENS_MAX: Final = 100_000
PARK_MS: Final = 300_000
"""A spent account whose end is not known is asked again after five minutes."""
PARK_MS_MAX: Final = 8 * 86_400_000
PARKED_MAX: Final = 1_000
"""With `pass_through` every login is an account of its own; beyond this those whose time is over are forgotten."""
NOTED_AT_ONCE: Final = 10_000
"""A hundredth of a limit, in millionths. What takes less is noted within a second."""
LOGIN_KNOWN_MS: Final = 86_400_000
OWN_HEADER: Final = "x-orchestra-token"
NO_REPORT: Final = Report()
ANONYMOUS: Final = Who("anonymous", priority=3)


def _as_told(overspent: Overspent) -> dict[str, Any]:
    values = msgspec.structs.asdict(overspent)
    return values | {"name": day_name(overspent.name)} if overspent.scope == "day" else values


def digest_of(token: str) -> str:
    """Returns what is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


class Desk:
    """The shared state of the gateway."""

    def __init__(
        self, config: GatewayConfig, clock: Clock, journal: Journal, prices: Prices, limiter: Limiter, chance: Callable[[], float]
    ) -> None:
        self.config = config
        self.clock = clock
        self.journal = journal
        self.prices = prices
        self.limiter = limiter
        self.chance = chance
        self.notices = Notices(clock)
        self.purse = Purse(journal.books, clock)
        self.estimator = Estimator()
        self.accounts: dict[str, Accounts] = {}
        self.breakers: dict[str, Breaker] = {name: Breaker() for name in config.upstreams}
        self.parked: dict[tuple[str, str], tuple[int, str]] = {}
        """(upstream, account) -> until when, and why."""
        self.draining = False
        self.body_bytes = 0
        """Of all request bodies that are held."""
        self.open = 0
        """Requests that are being worked on."""
        self.served = 0
        self._logins: OrderedDict[tuple[str, str], int] = OrderedDict()
        """(upstream, login) that was passed on -> when last."""
        self._unnoted: dict[Place, None] = {}
        """Lanes of which more is known than the journal has."""
        self._late: list[Closed] = []
        """Settlements that could not be written; their reservations stand until they can."""
        self._flagged: set[tuple[str, str]] = set()
        self._windows: dict[tuple[str, str, str], tuple[Place, int]] = {}
        """(upstream, account, window of a subscription) that is near its limit -> of which lane that was told, and when it begins anew."""

    # ---- who -------------------------------------------------------------------------------------------------------------

    def issue(self, who: Who, expires_ms: int, budgets: Mapping[str, int], *, keep: bool = False) -> str:
        """Returns a new token for an attempt.

        Args:
            who: For whom.
            expires_ms: Wall time from which it counts no more.
            budgets: Scope -> micro-dollars: `task`, `agent`, `plan`; negative lifts one.
            keep: A scope for which a budget was set or lifted stays so.

        Raises:
            BadInput: A budget is of no scope that `who` names.
        """
        if len(self.journal.books.state.tokens) >= TOKENS_MAX:
            self.forget_expired()
        if len(self.journal.books.state.tokens) >= TOKENS_MAX:
            raise BadInput(f"there are {TOKENS_MAX} tokens already", field="token", hint="revoke those whose attempts have ended")
        for scope, amount in budgets.items():
            name = str(getattr(who, scope, "")) if scope in BUDGETED else ""
            if not name:
                raise BadInput(f"there is no {scope!r} to have a budget", field=f"budgets.{scope}", hint="use task, agent or plan")
            if not keep or self.journal.books.said_budget(scope, name) is None:
                self.set_budget(scope, name, amount)
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        self.journal.write(Issued(digest_of(token), who, expires_ms))
        return token

    def set_budget(self, scope: str, name: str, amount_usd_micros: int) -> None:
        """Sets what a scope may use, if that is not what it is already."""
        if self.journal.books.said_budget(scope, name) != amount_usd_micros:
            self.journal.write(BudgetSet(scope, name, amount_usd_micros))
            self.purse.pump()

    def forget_budgets(self, scope: str, names: Sequence[str]) -> int:
        """Forgets what scopes may use that are over; returns how many had a budget."""
        known = self.journal.books.state.budgets.get(scope, {})
        found = tuple(name for name in names if name in known)
        if found:
            self.journal.write(BudgetsForgotten(scope, found))
        return len(found)

    def revoke(self, attempt: str, token: str) -> int:
        """Ends the tokens of an attempt, or one token; returns how many."""
        tokens = self.journal.books.state.tokens
        digest = digest_of(token) if token else ""
        found = [each for each, issued in tokens.items() if each == digest or (attempt and issued.who.attempt == attempt)]
        for each in found:
            self.journal.write(Revoked(each))
        return len(found)

    def forget_expired(self) -> None:
        """Ends the tokens whose time is over."""
        now_ms = self.clock.wall_ms()
        for digest in [each for each, issued in self.journal.books.state.tokens.items() if issued.expires_ms <= now_ms]:
            self.journal.write(Revoked(digest))

    def identify(self, headers: Mapping[str, str]) -> Who | None:
        """Returns for whom a request is made, by the token in any of the headers that clients use; None if none is good."""
        bearer = headers.get("authorization", "")
        shown = (
            headers.get(OWN_HEADER, ""),
            headers.get("x-api-key", ""),
            bearer[7:].strip() if bearer[:7].lower() == "bearer " else "",
            headers.get("x-goog-api-key", ""),
        )
        for token in shown:
            if not token.startswith(TOKEN_PREFIX) or len(token) > 200:
                continue
            digest = digest_of(token)
            issued = self.journal.books.state.tokens.get(digest)
            if issued is not None and hmac.compare_digest(issued.digest, digest) and issued.expires_ms > self.clock.wall_ms():
                return issued.who
        return None

    # ---- money -----------------------------------------------------------------------------------------------------------

    def quote(self, kind: str, model: str, usage: Usage) -> Quote:
        """Returns the price that holds; a model or a mode without one is told once."""
        day = day_of(self.clock.wall_ms())
        quote = self.prices.quote(kind, model, usage.prompt_tokens, day, mode=usage.mode, searches=usage.web_searches)
        if not quote.known and (flag := (model, usage.mode)) not in self._flagged and len(self._flagged) < 10_000:
            self._flagged.add(flag)
            self.notices.tell("price_unknown", model=model, provider=kind, mode=usage.mode)
        return quote

    def cost_of(self, kind: str, model: str, usage: Usage) -> int:
        """Returns what a request is thought to cost, in micro-dollars."""
        return cost_usd_micros(self.quote(kind, model, usage).price, usage)

    def open_request(self, who: Who, place: Place, kind: str, model: str, usage: Usage, claim: Claim | None = None) -> Opened | Overspent:
        """Reserves what a request is thought to cost, in the journal; or returns the budget that does not bear it, for good or for now.

        Raises:
            PortFailed: The journal cannot be written.
        """
        now_ms = self.clock.wall_ms()
        cost = self.cost_of(kind, model, usage)
        if (overspent := self.purse.claims.refusal(who, cost, now_ms, claim)) is not None:
            return overspent
        self._settle_late()
        opened = Opened(self.journal.books.state.next_id, now_ms, who, place.upstream, place.account, model, cost, usage)
        self.journal.write(opened)
        self.purse.drop(claim)
        return opened

    def held(self, opened: Opened) -> int:
        """Returns what is reserved for a request."""
        return self.journal.books.state.open.get(opened.id, opened).reserved_usd_micros

    def note(self, opened: Opened, cost_now: int, usage: Usage) -> None:
        """Writes down how far a request has come, for whoever settles it if this gateway dies. If that cannot be written, what stood there before holds."""
        with contextlib.suppress(PortFailed):
            self.journal.write(Grown(opened.id, self.held(opened), usage.output_tokens, usage, cost_now))

    def grow(self, opened: Opened, cost_now: int, usage: Usage) -> Overspent | None:
        """Reserves more for a request that turns out dearer, with room to go on; or returns the budget that does not bear even what it costs now."""
        books, held = self.journal.books, self.held(opened)
        wanted = cost_now + cost_now // 2
        if books.overspent(opened.who, max(0, wanted - held), opened.ms) is not None:
            wanted = cost_now
        overspent = books.overspent(opened.who, max(0, wanted - held), opened.ms)
        if overspent is None:
            self.journal.write(Grown(opened.id, wanted, usage.output_tokens, usage, cost_now))
            return None
        return msgspec.structs.replace(overspent, needed_usd_micros=0)  # what it used is settled now, and nobody asks for more

    def close_request(self, opened: Opened, kind: str, status: int, usage: Usage, *, assumed: bool, tries: int) -> None:
        """Settles a request. If the journal cannot be written the reservation stays until it can, which is on the safe side."""
        quote = self.quote(kind, opened.model, usage)
        cost = cost_usd_micros(quote.price, usage)
        charged = usage != Usage()
        closed = Closed(opened.id, self.clock.wall_ms(), status, usage, cost, assumed, charged and not quote.known, tries)
        try:
            self.journal.write(closed)
        except PortFailed as error:
            log.error("request-not-settled id=%d: %s", opened.id, error)
            self.notices.tell("not_settled", request=opened.id)
            self._late.append(closed)
            return
        for percent, warned in self.journal.books.warnings(opened.who, closed.ms):
            self.notices.tell("budget_warning", percent=percent, **_as_told(warned))
        self.purse.pump()

    def _settle_late(self) -> None:
        while self._late:
            self.journal.write(self._late[0])
            del self._late[0]

    def tell_overspent(self, who: Who, overspent: Overspent) -> str:
        """Tells that a budget is spent; returns it as a sentence."""
        if self.journal.books.first_told(overspent.scope, overspent.name, 100):
            self.notices.tell("budget_warning", percent=100, **_as_told(overspent))
        self.notices.tell("budget_spent", attempt=who.attempt, task=who.task, agent=who.agent, **_as_told(overspent))
        name = f" {overspent.name}" if overspent.scope != "day" else ""
        return (
            f"orchestra: the budget of {show_usd(overspent.budget_usd_micros)} of this {overspent.scope}{name} does not bear this request"
        )

    # ---- accounts and limits ---------------------------------------------------------------------------------------------

    def parked_ms(self, upstream: str, account: str) -> int:
        """Returns for how long an account has nothing left."""
        until_ms, _ = self.parked.get((upstream, account), (0, ""))
        left = until_ms - self.clock.steady_ms()
        if until_ms and left <= 0:
            del self.parked[(upstream, account)]
            self.notices.tell("account_resumed", upstream=upstream, account=account)
        return max(0, left)

    def park(self, upstream: str, account: str, report: Report, why: str) -> int:
        """The account has nothing left; returns for how long. Those who wait for it are told."""
        resets = [window.reset_ms for window in report.windows.values() if window.rejected and window.reset_ms is not None]
        known = max([*resets, *([report.retry_after_ms] if report.retry_after_ms else [])], default=PARK_MS)
        wait_ms = min(max(known, 1_000), PARK_MS_MAX)
        if not self.parked_ms(upstream, account):
            self.notices.tell("account_parked", upstream=upstream, account=account, wait_ms=wait_ms, reason=why)
        if len(self.parked) >= PARKED_MAX:
            now_ms = self.clock.steady_ms()
            self.parked = {place: each for place, each in self.parked.items() if each[0] > now_ms}
        self.parked[(upstream, account)] = (self.clock.steady_ms() + wait_ms, why)
        self._noted(ParkedAt(upstream, account, self.clock.wall_ms() + wait_ms, why))
        for place in list(self.limiter.lanes):
            if (place.upstream, place.account) == (upstream, account):
                self.limiter.turn_away(place)
        return wait_ms

    def note_taken(self, place: Place, charge: Charge) -> None:
        """A request is about to be sent. One that takes a good part of a limit is noted before that, so that `kill -9` forgets none; others soon."""
        self._unnoted[place] = None
        if self.limiter.lane(place).group.cost(charge) >= NOTED_AT_ONCE:
            self._note_lane(place)

    def note_later(self, place: Place) -> None:
        """More is known of a lane than the journal has."""
        self._unnoted[place] = None

    def note_lanes(self) -> None:
        """Writes down how the lanes stand of which more is known by now."""
        for place in list(self._unnoted):
            self._note_lane(place)

    def _note_lane(self, place: Place) -> None:
        mark = self.limiter.mark(place)
        if mark is None or self._noted(mark):
            del self._unnoted[place]

    def _noted(self, record: LaneAt | ParkedAt) -> bool:
        """Writes it, if it can be: a limit that is forgotten is learned again, and nothing fails for it."""
        try:
            self.journal.write(record)
        except PortFailed as error:
            log.error("limit-not-noted: %s", error)
            return False
        return True

    def recall_limits(self) -> None:
        """Goes on with the limits and parked accounts of the gateway before."""
        state = self.journal.books.state
        for lane in state.lanes.values():
            self.limiter.recall(lane)
        now_ms, wall_ms = self.clock.steady_ms(), self.clock.wall_ms()
        for each in state.parked.values():
            left_ms = min(each.until_ms - wall_ms, PARK_MS_MAX)
            if left_ms > 0 and each.upstream in self.config.upstreams:
                self.parked[(each.upstream, each.account)] = (now_ms + left_ms, each.why)

    def saw_login(self, upstream: str, login: str) -> None:
        """Remembers a login that is passed on: it has limits of its own, like an account."""
        self._logins[(upstream, login)] = self.clock.steady_ms()
        self._logins.move_to_end((upstream, login))
        if len(self._logins) > PARKED_MAX:
            self._logins.popitem(last=False)

    def logins(self) -> list[tuple[str, str]]:
        """Returns the logins that are parked, or were passed on lately: (upstream, login). One that was renewed is another."""
        since_ms = self.clock.steady_ms() - LOGIN_KNOWN_MS
        seen = [place for place, at_ms in self._logins.items() if at_ms >= since_ms]
        passing = {name for name, part in self.config.upstreams.items() if part.pass_through}
        return [place for place in dict.fromkeys([*seen, *self.parked]) if place[0] in passing]

    def choose(self, upstream: str, sessions: Sequence[str], model_class: str) -> Account | None:
        """Returns the account for a session: its own, or the one with the most room; None if no key of any is taken.

        Args:
            upstream: Where it goes.
            sessions: What the session is known by, the nearest name first.
            model_class: Of the model that is asked.
        """
        account = self._choose(upstream, sessions, model_class)
        if account is not None:
            self.accounts[upstream].stick(sessions, model_class, account.name)
        return account

    def _choose(self, upstream: str, sessions: Sequence[str], model_class: str) -> Account | None:
        accounts = self.accounts[upstream]
        usable = [account for account in accounts.by_name.values() if account.usable]
        mine = accounts.sticky(sessions, model_class)
        own = next((account for account in usable if account.name == mine), None)
        if own is not None and not (accounts.upstream.other_account_when_spent and self.parked_ms(upstream, own.name)):
            return own
        if not usable:
            return None
        chosen = min(usable, key=lambda account: (self.parked_ms(upstream, account.name), self._load(upstream, account, model_class)))
        return own if own is not None and self.parked_ms(upstream, chosen.name) else chosen

    def _load(self, upstream: str, account: Account, model_class: str) -> int:
        lane = self.limiter.lanes.get(Place(upstream, account.name, model_class))
        return 0 if lane is None else lane.waiting + lane.group.ramp.in_flight

    def tell_limits(self, place: Place, report: Report) -> None:
        """Tells which limits came near, and which are no longer."""
        where = _where(place)
        now_ms = self.clock.steady_ms()
        for view, near in self.limiter.lane(place).group.changes(now_ms):
            kind = "limit_warning" if near else "limit_calm"
            self.notices.tell(kind, **where, limit=view.name, used_percent=view.used_percent, foreign=view.foreign)
        for name, window in report.windows.items():
            key = (place.upstream, place.account, name)
            if window.used_percent >= WARN_PERCENT:
                first, _ = self._windows.get(key, (place, 0))
                if key not in self._windows:
                    self.notices.tell("limit_warning", **where, limit=f"window_{name}", used_percent=window.used_percent, foreign=0)
                self._windows[key] = first, now_ms + (PARK_MS_MAX if window.reset_ms is None else window.reset_ms)
            elif window.used_percent < CALM_PERCENT:
                self._calm_window(key, window.used_percent)

    def _calm_window(self, key: tuple[str, str, str], used_percent: int) -> None:
        place, _ = self._windows.pop(key, (None, 0))
        if place is not None:
            self.notices.tell("limit_calm", **_where(place), limit=f"window_{key[2]}", used_percent=used_percent, foreign=0)

    def look_at_limits(self) -> None:
        """Tells which limits are near no longer because time passed: no answer says so where nobody asks any more."""
        now_ms = self.clock.steady_ms()
        for place in list(self.limiter.lanes):
            self.tell_limits(place, NO_REPORT)
        for key in [key for key, (_, until_ms) in self._windows.items() if until_ms <= now_ms]:
            self._calm_window(key, 0)


def _where(place: Place) -> dict[str, Any]:
    return {"upstream": place.upstream, "account": place.account, "model_class": place.model_class}
