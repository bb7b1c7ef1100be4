"""The orchestra's own gateway, from settings and keys: whether there is one, what it is told, and how its process is started.

It comes by itself where there is something for it to hold: a file of its own that the settings name, or a key in this process's environment. Agents then get
neither. Where only a subscription's login is there, agents use that as they would without us; through a gateway that its file tells to pass it on.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from orchestra.agents.access import KEY_APIS, apis_of, keys_of
from orchestra.agents.registry import adapters
from orchestra.bootstrap.wiring import gateway_file, kind_settings, models_of
from orchestra.errors import PortFailed, SettingsInvalid
from orchestra.files import ensure_private_dir, write_atomically
from orchestra.gatekeeper import Gatekeeper, GatewayOptions, Started
from orchestra.gateway.config import DAY_VARIABLE, FOLDER_VARIABLE, LISTEN_VARIABLE, GatewayConfig, load_config
from orchestra.quantity import usd_micros
from orchestra.root import Root
from orchestra.secrets import handed
from orchestra.settings import Settings

log = logging.getLogger(__name__)

OFF: Final = "off"
ON: Final = "on"
BASES: Final[Mapping[str, tuple[str, str]]] = {
    "anthropic": ("ANTHROPIC_BASE_URL", "https://api.anthropic.com"),
    "openai": ("OPENAI_BASE_URL", "https://api.openai.com"),
    "gemini": ("GOOGLE_GEMINI_BASE_URL", "https://generativelanguage.googleapis.com"),
}
"""API -> the variable that moves it elsewhere, and where it is."""
FIRST_KINDS: Final[Mapping[str, str]] = {"anthropic": "claude", "openai": "codex", "gemini": "gemini"}
"""API -> the kind whose `base_url` says where the gateway goes."""
SUBSCRIPTION_PATH: Final = "/backend-api"
"""In the address of ChatGPT's API, which Codex asks with a subscription: its paths bear no version, so it is served under the upstream's name."""
TOKENS_OF: Final[Mapping[str, str]] = {"anthropic": "input_tokens", "openai": "tokens", "gemini": "input_tokens"}
"""What `api.rate_limits.tpm` means at each provider."""
PORT_FIRST: Final = 20_000
PORTS: Final = 12_000
PORT_STEP: Final = 4_093
PORTS_TRIED: Final = 8
FIRST_TRIES: Final = 20
FIRST_PAUSE_S: Final = 0.05
LOG_BYTES_MAX: Final = 8 << 20
SAID_BYTES: Final = 2_000


class Plan(NamedTuple):
    """The gateway that the settings ask for."""

    config: Path
    """Its file: one of the user's, or ours, which is then written before it is started."""
    text: dict[str, Any] | None
    """What ours says."""
    options: GatewayOptions
    day_usd: float
    logins: Mapping[str, str]
    """APIs for which agents keep their own login; see `Access.logins`."""

    @property
    def held(self) -> tuple[str, ...]:
        """The APIs of which it holds the keys."""
        return tuple(api for api in dict.fromkeys(self.options.upstreams.values()) if api not in self.logins)


def hold_keys(settings: Settings, root: Root, offered: Path | None = None) -> dict[str, str]:
    """Takes the keys that the gateway of these settings is to have out of this process's environment; returns them. Nobody else needs them.

    Args:
        settings: Those of the orchestra.
        root: Its folder.
        offered: A named pipe at which another process offers keys.

    Raises:
        SettingsInvalid: There can be no gateway as they say.
        PortFailed: Keys were offered and are not there any more.
    """
    handed.accept(offered)
    plan = plan_gateway(settings, root)
    if plan is None:
        return {}
    own = {kind_settings(settings).get(kind, {}).get("api_key_variable", "").strip() for kind in plan.options.kinds} if plan.held else set()
    return handed.take(sorted({*keys_of(plan.held), *_named(plan), *own} - {""}))


def _named(plan: Plan) -> set[str]:
    """Returns the variables in which its file says that keys are."""
    if plan.text is None:
        parts = load_config(plan.config).upstreams.values()
        return {place.env for part in parts for account in part.accounts.values() for place in account.keys}
    return {place["env"] for part in plan.text["upstreams"].values() for account in part["accounts"].values() for place in account["keys"]}


def plan_gateway(settings: Settings, root: Root, environ: Mapping[str, str] | None = None) -> Plan | None:
    """Returns the gateway that the settings ask for, or None.

    Args:
        settings: Those of the orchestra.
        root: Its folder.
        environ: Where keys are looked for; this process's own variables if it is not given.

    Raises:
        SettingsInvalid: It cannot be as they say.
    """
    if environ is None:
        environ = handed.environment()
    if settings.gateway.mode == OFF:
        return None
    if settings.gateway.file:
        path = gateway_file(settings, root)
        config = load_config(path, environ)
        parts, logins = config.upstreams, _logins(config)
        text, upstreams = None, {name: str(part.kind) for name, part in parts.items()}
        kinds = _kinds(settings, set(upstreams.values()), {})
    else:
        path, parts = root.gateway / "gateway.json", {}
        bases = {api: _base(settings, api, environ) for api in BASES if _key_variable(settings, api, environ)}
        text = _text(settings, bases, environ)
        upstreams = {str(api): str(api) for api in bases}
        kinds = _kinds(settings, set(bases), bases)
        logins = {}
    if not upstreams and settings.gateway.mode == ON:
        names = ", ".join(_variable_of(api) for api in BASES)
        raise SettingsInvalid("there is no key for it to hold", field="gateway.mode", hint=f"set one of {names}, or gateway.file")
    if not upstreams:
        return None
    budget = usd_micros(settings.cost.task_budget_usd, field="cost.task_budget_usd")
    classes: dict[str, dict[str, str]] = {}
    for part in parts.values():
        classes[part.kind] = {**part.classes, **classes.get(part.kind, {})}
    options = GatewayOptions(
        upstreams, kinds, budget if settings.cost.tracking_enabled else 0, settings.cost.on_spent, models_of(settings), classes
    )
    return Plan(path, text, options, settings.cost.daily_budget_usd if settings.cost.tracking_enabled else 0.0, logins)


def _logins(config: GatewayConfig) -> dict[str, str]:
    """Returns the APIs of which the upstream that serves them, the first of its kind, passes logins on, and the path at which it takes them."""
    first = {part.kind: (name, part) for name, part in reversed(config.upstreams.items())}
    return {kind: f"/{name}" if SUBSCRIPTION_PATH in part.base_url else "" for kind, (name, part) in first.items() if part.pass_through}


def _variable_of(api: str) -> str:
    return next(name for name, each in KEY_APIS.items() if each == api)


def _key_variable(settings: Settings, api: str, environ: Mapping[str, str]) -> str:
    """Returns the variable that has a key for the API, or nothing. A login of a subscription is no key: it belongs to the CLI."""
    own = kind_settings(settings).get(FIRST_KINDS[api], {}).get("api_key_variable", "").strip()
    usual = {"anthropic": ("ANTHROPIC_API_KEY",), "openai": ("OPENAI_API_KEY", "CODEX_API_KEY"), "gemini": ("GEMINI_API_KEY",)}[api]
    return next((name for name in (own, *usual) if name and environ.get(name, "").strip()), "")


def _base(settings: Settings, api: str, environ: Mapping[str, str]) -> str:
    """Returns where agents would go without a gateway, without the version that clients of OpenAI's form add to the address."""
    variable, usual = BASES[api]
    own = kind_settings(settings).get(FIRST_KINDS[api], {}).get("base_url", "").strip()
    return _plain(own or environ.get(variable, "").strip() or usual)


def _plain(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")


def _kinds(settings: Settings, apis: set[str], bases: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Returns the kinds that go through the gateway. One that the settings send elsewhere goes there."""
    found: dict[str, tuple[str, ...]] = {}
    sections = kind_settings(settings)
    for kind, adapter in adapters().items():
        own = sections.get(kind, {}).get("base_url", "").strip()
        used = tuple(sorted(api for api in apis_of(adapter.variables) & apis if not own or bases.get(api, _plain(own)) == _plain(own)))
        if used:
            found[kind] = used
    return found


def _text(settings: Settings, bases: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, Any]:
    limits = settings.api.rate_limits
    upstreams: dict[str, Any] = {}
    for api, base in bases.items():
        default = {name: value for name, value in (("requests", limits.rpm), (TOKENS_OF[api], limits.tpm)) if value}
        account = {"keys": [{"env": _key_variable(settings, api, environ)}], "limits": {"default": default} if default else {}}
        upstreams[api] = {"kind": api, "base_url": base, "accounts": {"main": account}}
    retry = {"tries": settings.api.retry.max_attempts, "multiplier": settings.api.retry.backoff_multiplier}
    return {"upstreams": upstreams, "retry": retry}


def make_gatekeeper(plan: Plan, root: Root, loop: Any, clock: Any, keys: Mapping[str, str]) -> Gatekeeper:
    """Returns what runs the gateway. Its file, if it is ours, is written; `keys` are those that were taken out of the environment for it."""
    if plan.text is not None:
        ensure_private_dir(root.gateway)
        write_atomically(plan.config, msgspec.json.format(msgspec.json.encode(plan.text)) + b"\n")
    books = root.gateway / "books"
    return Gatekeeper(loop, clock, books / "admin.sock", lambda: _start(plan, root, books, keys), plan.options)


class _Process:
    """The process of a gateway. It is nobody's to wait for: it goes on when this one ends."""

    def __init__(self, pid: int, log_file: Path, began: int) -> None:
        self._pid = pid
        self._log = log_file
        self._began = began
        self._code: int | None = None

    def ended(self) -> str | None:
        """Returns its last words if it has ended."""
        if self._code is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if not pid:
                return None
            self._code = os.waitstatus_to_exitcode(status)
        with self._log.open("rb") as file:
            file.seek(self._began)
            said = file.read(SAID_BYTES).decode(errors="replace")
        return " ".join(said.split())[-400:] or f"it ended with code {self._code}"


async def _start(plan: Plan, root: Root, books: Path, keys: Mapping[str, str]) -> Started:
    """Starts the process, in a session of its own: it outlives this one, as the agents do. Keys come by its standard input."""
    log_file = root.logs / "gateway.log"
    environment = {
        **os.environ,
        FOLDER_VARIABLE: str(books),
        LISTEN_VARIABLE: f"127.0.0.1:{await free_port(root.key)}",
        **({DAY_VARIABLE: f"{plan.day_usd}"} if plan.day_usd else {}),
        handed.FD_VARIABLE: "0",
    }
    try:
        ensure_private_dir(root.gateway)
        if log_file.exists() and log_file.stat().st_size > LOG_BYTES_MAX:
            log_file.replace(log_file.with_suffix(".log.1"))
        with os.fdopen(os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab") as output:
            began = output.tell()
            argv = [sys.executable, "-m", "orchestra", "gateway", "run", "--config", str(plan.config)]
            with handed.pipe_with(keys) as pipe:
                streams = [(os.POSIX_SPAWN_DUP2, each, number) for number, each in enumerate((pipe, output.fileno(), output.fileno()))]
                pid = await asyncio.to_thread(os.posix_spawn, argv[0], argv, environment, file_actions=streams, setsid=True)
    except OSError as error:
        raise PortFailed(f"{error.strerror or error}", hint=f"see {root.logs}") from error
    log.info("gateway-process", extra={"pid": pid})
    return _Process(pid, log_file, began)


async def free_port(key: str) -> int:
    """Returns the port of an orchestra's gateway: the same whenever it can be had, as agents that run go on asking there. One that has just been killed
    takes a moment to let go of it."""
    number = int(hashlib.sha256(f"{key}:gateway".encode()).hexdigest()[:8], 16)
    ports = [PORT_FIRST + (number + index * PORT_STEP) % PORTS for index in range(PORTS_TRIED)]
    for _ in range(FIRST_TRIES):
        if is_free(ports[0]):
            return ports[0]
        await asyncio.sleep(FIRST_PAUSE_S)
    return next(filter(is_free, ports), 0)


def is_free(port: int) -> bool:
    """Tells whether nobody listens on a port of this machine's loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
