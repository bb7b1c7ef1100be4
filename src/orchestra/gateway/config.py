"""The gateway's own file: YAML or JSON, checked whole, with the place and the remedy in every complaint.

Amounts in the file are what people write (dollars, seconds); everything behind `GatewayConfig`'s properties is whole micro-dollars and milliseconds.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from orchestra.errors import SettingsInvalid
from orchestra.intake.document import parse, show_path
from orchestra.intake.shape import convert
from orchestra.metering.formulas import DIMENSIONS
from orchestra.metering.prices import Price
from orchestra.metering.retry import TRIES_MAX
from orchestra.quantity import ms_from_seconds, usd_micros

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=10_000_000_000)]
Dollars = Annotated[float, Meta(ge=0, le=1e9)]

FOLDER_VARIABLE: Final = "ORCHESTRA_GATEWAY_FOLDER"
LISTEN_VARIABLE: Final = "ORCHESTRA_GATEWAY_LISTEN"
DAY_VARIABLE: Final = "ORCHESTRA_GATEWAY_DAY_USD"
GUIDE: Final = "see docs/guides/limits-and-cost.md"
_BASE: Final = re.compile(r"(https?)://([^/?#@\s]+)(/[^?#\s]*)?")
_LISTEN: Final = re.compile(r"(\[[0-9a-f:]+\]|[0-9.]+|localhost):(\d{1,5})")
RESERVED_NAMES: Final = frozenset({"v1", "v1beta", "v1alpha"})


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every part of the file."""


class KeyPlace(Part, frozen=True, kw_only=True):
    """Where one key is: exactly one of the three."""

    env: str = ""
    file: str = ""
    command: tuple[str, ...] = ()


class AccountPart(Part, frozen=True, kw_only=True):
    """One organisation (or workspace) at a provider. Limits belong to it, whichever of its keys is used."""

    keys: Annotated[tuple[KeyPlace, ...], Meta(min_length=1, max_length=64)]
    limits: dict[str, dict[str, Count]] = {}
    """Class of models (`opus-4`, or `default`) -> dimension -> amount a minute (a day for `requests_per_day`)."""
    concurrency: Annotated[int, Meta(ge=1, le=10_000)] = 256
    auth: Literal["", "x-api-key", "bearer", "x-goog-api-key"] = ""
    """Header of the key; empty is the provider's own."""


class UpstreamPart(Part, frozen=True, kw_only=True):
    """One model API."""

    kind: Literal["anthropic", "openai", "gemini"]
    base_url: str
    accounts: dict[Name, AccountPart] = {}
    pass_through: bool = False
    """The client's own login is forwarded; this gateway holds no key for it."""
    limits: dict[str, dict[str, Count]] = {}
    """With `pass_through`: limits that are kept for all logins together."""
    anonymous: bool = False
    """With `pass_through`: requests without a token of ours are let through and counted as `anonymous`."""
    other_paths: Literal["refuse", "pass"] = "refuse"
    other_account_when_spent: bool = False
    """A session may move to another account when its own has nothing left; its prompt cache is lost by that."""
    classes: dict[str, Name] = {}
    """Regular expression of model names -> class, before the built-in ones."""
    ca_file: str = ""


class BudgetsPart(Part, frozen=True, kw_only=True):
    """Budgets that hold without being set by anybody."""

    day_usd: Dollars | None = None


class PricePart(Part, frozen=True, kw_only=True):
    """Dollars a million tokens."""

    input: Dollars
    output: Dollars
    cache_read: Dollars | None = None
    cache_write_5m: Dollars | None = None
    cache_write_1h: Dollars | None = None

    def price(self, field: str) -> Price:
        """Returns it in micro-dollars."""

        def micros(value: float | None) -> int:
            return -1 if value is None else usd_micros(value, field=field)

        return Price(
            micros(self.input), micros(self.output), micros(self.cache_read), micros(self.cache_write_5m), micros(self.cache_write_1h)
        )


class PricesPart(Part, frozen=True, kw_only=True):
    """What goes before the shipped table."""

    models: dict[str, PricePart] = {}
    unknown: PricePart | None = None


class BoundsPart(Part, frozen=True, kw_only=True):
    """What a client may take of the gateway."""

    connections: Annotated[int, Meta(ge=1, le=100_000)] = 2_000
    body_mb: Annotated[int, Meta(ge=1, le=512)] = 32
    """Of one request, also when inflated. 32 is Anthropic's own."""
    bodies_mb: Annotated[int, Meta(ge=1, le=65_536)] = 512
    """Of all requests that are being read or waited with."""
    head_seconds: Seconds = 15.0
    body_seconds: Seconds = 120.0
    stalled_reader_seconds: Seconds = 60.0
    """A client that takes nothing for so long is dropped."""
    first_byte_seconds: Seconds = 300.0
    idle_seconds: Seconds = 300.0
    """Between two bytes of an upstream."""
    whole_seconds: Seconds = 3_600.0
    queue: Annotated[int, Meta(ge=1, le=100_000)] = 2_000
    """Requests that wait for one class of models of one account."""
    queue_seconds: Seconds = 120.0
    """Longest wait, in the queue and between tries together."""
    agent_in_flight: Annotated[int, Meta(ge=1, le=10_000)] = 8
    drain_seconds: Seconds = 30.0


class RetryPart(Part, frozen=True, kw_only=True):
    """How often the gateway tries again, before the first byte of an answer."""

    tries: Annotated[int, Meta(ge=1, le=100)] = TRIES_MAX
    multiplier: Annotated[float, Meta(ge=1, le=100)] = 2.0
    """From one pause to the next."""


class GatewayConfig(Part, frozen=True, kw_only=True):
    """All of it."""

    listen: str = "127.0.0.1:8377"
    folder: str = ".gateway"
    upstreams: Annotated[dict[Name, UpstreamPart], Meta(min_length=1, max_length=64)]
    budgets: BudgetsPart = BudgetsPart()
    prices: PricesPart = PricesPart()
    bounds: BoundsPart = BoundsPart()
    retry: RetryPart = RetryPart()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def day_budget_usd_micros(self) -> int:
        """Of every day; negative is none."""
        return -1 if self.budgets.day_usd is None else usd_micros(self.budgets.day_usd, field="budgets.day_usd")

    @property
    def queue_ms(self) -> int:
        """Longest wait."""
        return ms_from_seconds(self.bounds.queue_seconds, field="bounds.queue_seconds")

    @property
    def admin_socket(self) -> Path:
        """Where the administration is served."""
        return Path(self.folder) / "admin.sock"


def load_config(path: Path, environ: Mapping[str, str] = os.environ) -> GatewayConfig:
    """Returns the configuration of a file; relative paths in it count from its folder.

    Raises:
        SettingsInvalid: The file cannot be read or something in it cannot hold. `field` is its path.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        words = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise SettingsInvalid(f"{path} cannot be read: {words}", field="config", hint="name the gateway's file with --config") from exc
    document = parse(text, source=path.name, error=SettingsInvalid)
    made = convert(document.value, GatewayConfig)
    if isinstance(made, list):
        problem = made[0]
        raise SettingsInvalid(
            f"{document.where(problem.path)}: {problem.message}", hint=problem.hint or GUIDE, field=show_path(problem.path)
        )
    config = msgspec.structs.replace(
        made,
        listen=environ.get(LISTEN_VARIABLE) or made.listen,
        budgets=made.budgets if made.budgets.day_usd is not None else _day_budget(made.budgets, environ.get(DAY_VARIABLE, "")),
        folder=str(path.parent / Path(environ.get(FOLDER_VARIABLE) or made.folder).expanduser()),
    )
    _check(config)
    return config


def _day_budget(budgets: BudgetsPart, text: str) -> BudgetsPart:
    """Takes the budget of a day from the environment, where the file has none."""
    found = convert({"day_usd": float(text)}, BudgetsPart) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) else None
    if text and not isinstance(found, BudgetsPart):
        raise SettingsInvalid(f"{text[:20]!r} is no amount of dollars", field=DAY_VARIABLE, hint="write 100 or 99.50")
    return found if isinstance(found, BudgetsPart) else budgets


def _check(config: GatewayConfig) -> None:
    found = _LISTEN.fullmatch(config.listen)
    if found is None or int(found[2]) > 65_535:
        raise SettingsInvalid(f"{config.listen!r} is no address", field="listen", hint="write 127.0.0.1:8377")
    host = found[1].strip("[]")
    if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
        raise SettingsInvalid(
            f"{config.listen} can be reached from other machines", field="listen", hint="listen on 127.0.0.1 and forward the port by SSH"
        )
    for name, upstream in config.upstreams.items():
        _check_upstream(f"upstreams.{name}", name, upstream)
    for pattern, price in config.prices.models.items():
        price.price(f"prices.models.{pattern}")


def _check_upstream(where: str, name: str, upstream: UpstreamPart) -> None:
    if name in RESERVED_NAMES:
        raise SettingsInvalid(f"{name!r} is the beginning of a provider's own paths", field=where, hint="choose another name")
    found = _BASE.fullmatch(upstream.base_url)
    if found is None or "%" in upstream.base_url or "//" in (found[3] or "") or ".." in (found[3] or ""):
        raise SettingsInvalid(
            f"{upstream.base_url[:200]!r} is no base URL", field=f"{where}.base_url", hint="write https://host[:port][/path]"
        )
    if found[1] == "http" and not _is_local(found[2]):
        raise SettingsInvalid(
            "a key would be sent without encryption", field=f"{where}.base_url", hint="use https; http is for this machine only"
        )
    if not upstream.accounts and not upstream.pass_through:
        raise SettingsInvalid("there is no account", field=f"{where}.accounts", hint="add one, or set pass_through")
    for pattern in upstream.classes:
        try:
            re.compile(pattern)
        except re.error as exc:
            raise SettingsInvalid(
                f"{pattern[:80]!r} is no pattern: {exc}", field=f"{where}.classes", hint="write a regular expression"
            ) from exc
    _check_limits(f"{where}.limits", upstream.limits)
    for account_name, account in upstream.accounts.items():
        _check_limits(f"{where}.accounts.{account_name}.limits", account.limits)
        for index, key in enumerate(account.keys):
            if bool(key.env) + bool(key.file) + bool(key.command) != 1:
                field = f"{where}.accounts.{account_name}.keys[{index}]"
                raise SettingsInvalid("a key is in one place", field=field, hint="give one of env, file and command")


def _check_limits(where: str, limits: Mapping[str, Mapping[str, int]]) -> None:
    for model_class, dimensions in limits.items():
        for name in dimensions:
            if name not in DIMENSIONS:
                hint = "use " + ", ".join(DIMENSIONS)
                raise SettingsInvalid(f"there is no limit called {name[:40]!r}", field=f"{where}.{model_class}.{name}", hint=hint)


def _is_local(authority: str) -> bool:
    host = authority.rpartition(":")[0] if re.search(r":\d+$", authority) else authority
    host = host.strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
