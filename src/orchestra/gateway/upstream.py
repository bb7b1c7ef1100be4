"""Talks to the model APIs: connections, the headers of a request as it is sent on, and of a response as it is given back."""

from __future__ import annotations

import io
import re
import ssl
from collections.abc import Iterable, Mapping
from typing import Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from orchestra.gateway.config import GatewayConfig, UpstreamPart

CONNECT_SECONDS: Final = 10.0
CONNECTIONS_MAX: Final = 2_000
AT_ONCE_BYTES: Final = 1 << 19
"""A larger body is given to the transport in pieces, so that it holds up nobody."""
TOKEN_PREFIX: Final = "orc-"
"""What every token of ours begins with; none is ever sent on."""
TOKEN: Final = re.compile(TOKEN_PREFIX + r"[A-Za-z0-9_-]{43}")
IDLE_SECONDS: Final = 20.0
"""A connection that was not used for longer is not used again: providers close theirs after a minute at the earliest."""

HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
CREDENTIALS: Final = frozenset({"authorization", "x-api-key", "x-goog-api-key", "api-key", "cookie"})
OTHER_METHODS: Final = frozenset({"x-http-method-override", "x-http-method", "x-method-override"})
"""With these a request would be another one for the provider than for us."""
_NOT_SENT: Final = (
    HOP_BY_HOP | OTHER_METHODS | {"host", "content-length", "expect", "accept-encoding", "forwarded", "via", "x-real-ip", "http2-settings"}
)
_NOT_GIVEN_BACK: Final = HOP_BY_HOP | {"alt-svc"}
_READABLE: Final = frozenset({"gzip", "deflate", "identity"})
_AUTOMATIC: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class Upstreams:
    """One pool of connections for each upstream, so that a reload or a sick one touches no other."""

    def __init__(self) -> None:
        self._sessions: dict[str, tuple[UpstreamPart, aiohttp.ClientSession]] = {}
        self._old: list[aiohttp.ClientSession] = []

    def configure(self, config: GatewayConfig) -> None:
        """Makes the pools of a configuration. One whose upstream changed is left to the requests that still use it."""
        for name, upstream in config.upstreams.items():
            known = self._sessions.get(name)
            if known is None or (known[0].base_url, known[0].ca_file) != (upstream.base_url, upstream.ca_file):
                if known is not None:
                    self._old.append(known[1])
                self._sessions[name] = (upstream, self._session(upstream))

    def _session(self, upstream: UpstreamPart) -> aiohttp.ClientSession:
        trust = ssl.create_default_context(cafile=upstream.ca_file or None)
        connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX, ssl=trust, keepalive_timeout=IDLE_SECONDS)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            skip_auto_headers=_AUTOMATIC,
            max_field_size=65_536,
        )

    async def send(self, name: str, method: str, target: str, headers: CIMultiDict[str], body: bytes | None) -> aiohttp.ClientResponse:
        """Sends a request; returns when the head of the response is there. Redirects are not followed: they would take the key elsewhere.

        Raises:
            aiohttp.ClientError: There is no response.
        """
        upstream, session = self._sessions[name]
        url = URL(upstream.base_url.rstrip("/") + target, encoded=True)
        data = io.BytesIO(body) if body is not None and len(body) > AT_ONCE_BYTES else body
        return await session.request(method, url, data=data, headers=headers, allow_redirects=False)

    async def close(self) -> None:
        """Closes all connections."""
        for session in [*self._old, *(session for _, session in self._sessions.values())]:
            await session.close()
        self._sessions.clear()
        self._old.clear()


def _connection_names(values: Iterable[str]) -> set[str]:
    return {name.strip().lower() for value in values for name in value.split(",")}


def request_headers(raw: Iterable[tuple[bytes, bytes]], auth: tuple[str, str] | None, *, plain: bool = False) -> CIMultiDict[str]:
    """Returns the headers of a request as they are sent on: as they came, but for those that concern this connection, and the login.

    Args:
        raw: As they came.
        auth: The header with the real key; None passes the client's own login on.
        plain: The answer may not be compressed: a stream that has to be cut could not be ended with words inside of gzip.
    """
    pairs = [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in raw]
    dropped = _NOT_SENT | _connection_names(value for name, value in pairs if name.lower() == "connection")
    if auth is not None:
        dropped |= CREDENTIALS
    sent: CIMultiDict[str] = CIMultiDict()
    encodings: list[str] = []
    for name, value in pairs:
        lower = name.lower()
        if lower == "accept-encoding":
            encodings += [part.strip() for part in value.split(",") if part.partition(";")[0].strip().lower() in _READABLE]
        elif lower in dropped or lower.startswith(("x-orchestra-", "x-forwarded-")) or _is_ours(lower, value):
            continue
        else:
            sent.add(name, value)
    sent["Accept-Encoding"] = "identity" if plain else ", ".join(encodings) or "identity"
    if auth is not None:
        sent.add(*auth)
    return sent


def _is_ours(name: str, value: str) -> bool:
    """Tells whether a header shows a token of ours, whatever it is called."""
    return (name in CREDENTIALS and TOKEN_PREFIX in value) or TOKEN.search(value) is not None


def response_headers(raw: Iterable[tuple[bytes, bytes]], added: Mapping[str, str]) -> CIMultiDict[str]:
    """Returns the headers of a response as they are given back: as they came, but for those that concern the other connection."""
    pairs = [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in raw]
    dropped = _NOT_GIVEN_BACK | _connection_names(value for name, value in pairs if name.lower() == "connection")
    given: CIMultiDict[str] = CIMultiDict()
    for name, value in pairs:
        if name.lower() not in dropped:
            given.add(name, value)
    given.update(added)
    return given
