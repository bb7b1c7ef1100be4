"""A gateway in this process, before a scripted model API on loopback."""

from __future__ import annotations

import io
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp

from orchestra.clock import Clock
from orchestra.clocks.system import SystemClock
from orchestra.gateway.admin import ask_admin
from orchestra.gateway.service import Gateway
from orchestra.testing.upstream import Script, Upstream

CANARY: Final = f"sk-canary-{os.getpid()}-3f9a1c77e2"
"""Of this process alone: gateways of tests that run beside this one have another."""
MODEL: Final = "claude-opus-4-5"
CLOCK: Final = SystemClock()


class Stage:
    """Everything a test needs."""

    def __init__(self, gateway: Gateway, upstream: Upstream, http: aiohttp.ClientSession, token: str, folder: Path) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.http = http
        self.token = token
        self.folder = folder

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.gateway.port}"

    async def admin(self, method: str, **params: Any) -> Any:
        return await ask_admin(self.gateway.config.admin_socket, method, params)

    async def post(
        self, body: object = None, *, path: str = "/v1/messages?beta=true", token: str = "", **headers: str
    ) -> tuple[int, bytes, Any]:
        """Returns status, body and headers of one message."""
        data = body if isinstance(body, bytes) else json.dumps(asking() if body is None else body).encode()
        names = {"x-api-key": token or self.token, "anthropic-version": "2023-06-01", "content-type": "application/json"}
        names |= {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.post(self.url + path, data=io.BytesIO(data) if len(data) > 1 << 20 else data, headers=names) as response:
            return response.status, await response.read(), response.headers

    async def totals(self, by: str = "all", name: str = "") -> dict[str, Any]:
        found = await self.admin("usage", by=by, name=name)
        rows: dict[str, Any] = found["usage"][name]
        return rows

    async def kinds(self) -> list[str]:
        return [each["kind"] for each in (await self.admin("events"))["events"]]

    async def until(self, true: Callable[[], bool]) -> None:
        """Waits for something that is about to become true; the test's own deadline ends it if it does not."""
        while not true():
            await CLOCK.sleep_ms(5)

    async def quiet(self) -> None:
        """Waits until nothing is open any more."""
        await self.until(lambda: self.gateway.desk.open == 0)


def asking(model: str = MODEL, *, stream: bool = False, max_tokens: int = 100, text: str = "hi") -> dict[str, Any]:
    """A request as clients send it."""
    return {"model": model, "max_tokens": max_tokens, "stream": stream, "messages": [{"role": "user", "content": text}]}


def configuration(base_url: str, **more: Any) -> dict[str, Any]:
    """The gateway's file for one upstream with one key; what is given is laid over it."""
    upstream: dict[str, Any] = {"kind": "anthropic", "base_url": base_url, "accounts": {"main": {"keys": [{"env": "KEY_A"}]}}}
    upstream |= more.pop("upstream", {})
    return {"listen": "127.0.0.1:0", "folder": "books", "upstreams": {"api": upstream}, **more}


@asynccontextmanager
async def staged(
    folder: Path,
    script: Script,
    environ: Mapping[str, str] | None = None,
    *,
    issue: dict[str, Any] | None = None,
    clock: Clock = CLOCK,
    **config: Any,
) -> AsyncIterator[Stage]:
    """A running gateway; `config` is laid over the plain one, `environ` is where its keys are."""
    upstream = Upstream(script, clock)
    base_url = await upstream.start()
    (folder / "gateway.json").write_text(json.dumps(configuration(base_url, **config)))
    gateway = Gateway(folder / "gateway.json", clock, environ if environ is not None else {"KEY_A": CANARY})
    try:
        await gateway.start()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            stage = Stage(gateway, upstream, http, "", folder)
            params = {"attempt": "try-1", "task": "task-1", "agent": "agent-1", "plan": "plan-1", **(issue or {})}
            stage.token = (await stage.admin("issue_token", **params))["token"]
            yield stage
    finally:
        await gateway.stop()
        await upstream.stop()
