"""What is shown of cost and limits: read-only records for people and programs. Money is whole micro-dollars, times are milliseconds."""

from __future__ import annotations

import msgspec


class CostView(msgspec.Struct, frozen=True):
    """Base of these views."""


class Settled(CostView, frozen=True):
    """What the gateway settled for something. The kinds of input do not overlap."""

    requests: int = 0
    input_tokens: int = 0
    cache_write_tokens: int = 0
    cache_read_tokens: int = 0
    output_tokens: int = 0
    cost_usd_micros: int = 0
    assumed_requests: int = 0
    """The provider did not say what they used; they are settled as estimated."""
    unpriced_requests: int = 0
    """Their model is in no price table; the highest price was used."""
    reserved_usd_micros: int = 0
    """Held for requests that are not settled yet."""

    @property
    def tokens(self) -> int:
        """Of all kinds."""
        return self.input_tokens + self.cache_write_tokens + self.cache_read_tokens + self.output_tokens

    def plus(self, other: Settled) -> Settled:
        """Returns the sum, field by field."""
        return Settled(*(getattr(self, name) + getattr(other, name) for name in self.__struct_fields__))

    def minus(self, other: Settled) -> Settled:
        """Returns what is left when `other` is taken off, field by field and never below zero."""
        return Settled(*(max(0, getattr(self, name) - getattr(other, name)) for name in self.__struct_fields__))


class CostRow(CostView, frozen=True):
    """What one name of a scope cost. Requests and tokens are the gateway's, or the programs' own where no gateway counted."""

    name: str
    """Empty for what bears no name of this scope."""
    requests: int
    input_tokens: int
    cache_write_tokens: int
    cache_read_tokens: int
    output_tokens: int
    settled_usd_micros: int | None
    """As the gateway settled it; None where no gateway counted."""
    said_usd_micros: int | None
    """As the agents' programs said; None where none named a cost."""
    difference_usd_micros: int | None
    """Settled less said, over the attempts of which both are known; None where there is none."""
    compared_attempts: int = 0
    unsaid_attempts: int = 0
    """The gateway settled something, and the program named no cost: it never does, was cut off, or still runs."""
    uncounted_attempts: int = 0
    """The program named a cost, and the gateway counted nothing: it did not go through the gateway."""
    assumed_requests: int = 0
    unpriced_requests: int = 0
    reserved_usd_micros: int = 0


class CostReply(CostView, frozen=True):
    """Answer to `cost`."""

    by: str
    source: str
    """`gateway` (it runs), `journal` (its books, read as they stand) or `agents` (what their programs said)."""
    note: str
    """The same in a sentence."""
    live: bool
    """A coordinator runs, so that there may be more to come."""
    now_ms: int
    rows: tuple[CostRow, ...]
    total: CostRow
    """Of all rows, those that were left out included."""
    left_out: int = 0
    prices_made: str = ""
    """Day of the price table."""


class LimitView(CostView, frozen=True):
    """One limit of an account for a class of models."""

    upstream: str
    account: str
    model_class: str
    name: str
    """`requests`, `input_tokens`, `output_tokens`, `tokens` (a minute) or `requests_per_day`; empty if none is known."""
    limit: int | None
    used: int | None
    """None while no gateway runs."""
    left: int | None
    used_percent: int | None
    learned: bool = False
    """By the provider's own headers."""
    waiting: int = 0
    in_flight: int = 0
    concurrency: int = 0
    closed_ms: int = 0
    """For how long nothing is sent: the provider asked for it, or the account has nothing left."""
    foreign: int = 0
    """What others of the same account took lately, by the provider's own count."""


class LimitsReply(CostView, frozen=True):
    """Answer to `limits`."""

    source: str
    """`gateway` (as they stand), `configuration` (as written in its file) or empty (there is no gateway)."""
    note: str
    limits: tuple[LimitView, ...]
    upstreams_down: tuple[str, ...] = ()


class BudgetView(CostView, frozen=True):
    """One budget."""

    scope: str
    """`day`, `plan`, `task` or `agent`."""
    name: str
    budget_usd_micros: int
    settled_usd_micros: int
    reserved_usd_micros: int


class BudgetsReply(CostView, frozen=True):
    """Answer to `budgets` and `set_budget`."""

    source: str
    note: str
    budgets: tuple[BudgetView, ...]


class Range(CostView, frozen=True):
    """A guess: what is likely, and the bounds between which most cases lie."""

    low: int
    likely: int
    high: int


class TaskEstimate(CostView, frozen=True):
    """What one task is thought to take, all its attempts together."""

    task: str
    kind: str
    category: str
    cost_usd_micros: Range
    tokens: Range
    duration_ms: Range
    basis: str
    """Where it comes from, in words."""
    samples: int = 0
    """Attempts of the past it was made from; 0: from the price table."""
    model: str = ""
    """Whose price was taken, where one was."""
    priced: bool = True
    """The model's price is known; else the dearest was taken."""


class EstimateReply(CostView, frozen=True):
    """Answer to `estimate`."""

    plan: str
    tasks: tuple[TaskEstimate, ...]
    cost_usd_micros: Range
    tokens: Range
    duration_ms: Range
    agents: int
    """With how many the duration was worked out."""
    samples: int
    prices_made: str


class EstimateCostReply(CostView, frozen=True):
    """Answer to `estimate_cost` of the parent interface."""

    estimated_cost_usd: float
    estimated_duration_seconds: int
    cost_usd_low: float
    cost_usd_high: float
    basis: str


class ProviderLoad(CostView, frozen=True):
    """How far the limits of one upstream are used, at its tightest place. What is not known is None."""

    name: str
    rpm_used: int | None = None
    rpm_limit: int | None = None
    tpm_used: int | None = None
    tpm_limit: int | None = None
