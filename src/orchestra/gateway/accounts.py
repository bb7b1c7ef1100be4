"""The accounts of an upstream with their keys, and which of them a session uses. The only module that holds keys."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from orchestra.errors import SettingsInvalid
from orchestra.gateway.config import AccountPart, KeyPlace, UpstreamPart
from orchestra.secret import Secret, SecretSource
from orchestra.secrets.places import CommandSecret, EnvironmentSecret, FileSecret

SESSIONS_MAX: Final = 20_000
REVIVE_MS: Final = 2_000
AGAIN_MS: Final = 60_000
"""After which a key that was refused is tried once more."""
HEADERS: Final = {"anthropic": "x-api-key", "openai": "bearer", "gemini": "x-goog-api-key"}


def source_of(place: KeyPlace, environ: Mapping[str, str], folder: Path) -> SecretSource:
    """Returns the adapter for a place in the configuration."""
    if place.env:
        return EnvironmentSecret(place.env, environ)
    return FileSecret(folder / Path(place.file).expanduser()) if place.file else CommandSecret(place.command)


class Key:
    """One key in use."""

    __slots__ = ("place", "quarantined", "refused_ms", "renewing", "secret", "source")

    def __init__(self, place: KeyPlace, source: SecretSource, secret: Secret) -> None:
        self.place = place
        self.source = source
        self.secret = secret
        self.quarantined = False
        """The provider does not take it, and its place has no other."""
        self.refused_ms = 0
        self.renewing = asyncio.Lock()
        """Two hundred requests that are refused at once read its place once."""


class Account:
    """One organisation at a provider."""

    def __init__(self, name: str, part: AccountPart, kind: str, keys: list[Key]) -> None:
        self.name = name
        self.part = part
        self.keys = keys
        self._auth = part.auth or HEADERS[kind]
        self._turn = 0

    @property
    def usable(self) -> bool:
        """Whether any of its keys is taken."""
        return any(not key.quarantined for key in self.keys)

    def next_key(self) -> Key | None:
        """Returns the keys in turn; None if none is taken."""
        for _ in self.keys:
            self._turn = (self._turn + 1) % len(self.keys)
            if not self.keys[self._turn].quarantined:
                return self.keys[self._turn]
        return None

    def header(self, secret: Secret) -> tuple[str, str]:
        """Returns the header that shows a key to the provider."""
        if self._auth == "bearer":
            return "Authorization", f"Bearer {secret.reveal()}"
        return self._auth, secret.reveal()


class Accounts:
    """All accounts of one upstream."""

    def __init__(self, upstream: UpstreamPart, accounts: dict[str, Account]) -> None:
        self.upstream = upstream
        self.by_name = accounts
        self._sessions: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._revived_ms = -REVIVE_MS

    def sticky(self, sessions: Sequence[str], model_class: str) -> str | None:
        """Returns the account that was used last for a class of models under the first of these names that is known."""
        return next((self._sessions[key] for name in sessions if (key := (name, model_class)) in self._sessions), None)

    def stick(self, sessions: Sequence[str], model_class: str, account: str) -> None:
        """Remembers it under all of them."""
        for name in sessions:
            self._sessions[(name, model_class)] = account
            self._sessions.move_to_end((name, model_class))
        while len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)

    async def look(self) -> list[Key]:
        """Returns the keys whose files hold another by now, which is used from now on. A file that cannot be read or holds no key changes nothing."""
        return [key for key in self._keys() if isinstance(key.source, FileSecret) and await _is_another(key)]

    async def revive(self, now_ms: int) -> bool:
        """Looks whether the place of a quarantined key holds another by now, every few seconds at most; tells whether any key may be used again.

        A key that was refused a while ago is tried once more: providers refuse good keys during incidents of their own.
        """
        if now_ms - self._revived_ms < REVIVE_MS:
            return False
        self._revived_ms = now_ms
        quarantined = [key for key in self._keys() if key.quarantined]
        for key in quarantined:
            async with key.renewing:
                if not await _is_another(key) and now_ms - key.refused_ms >= AGAIN_MS:
                    key.quarantined = False
        return any(not key.quarantined for key in quarantined)

    def _keys(self) -> list[Key]:
        return [key for account in self.by_name.values() for key in account.keys]

    def adopt_sessions(self, older: Accounts) -> None:
        """Goes on with what the accounts before a reload knew."""
        self._sessions = older._sessions


async def load_accounts(
    name: str, upstream: UpstreamPart, environ: Mapping[str, str], folder: Path, older: Accounts | None = None
) -> Accounts:
    """Reads all keys of an upstream. After a reload a place that cannot be read keeps the key it had.

    Raises:
        SettingsInvalid: An account has no key at all.
    """
    found: dict[str, Account] = {}
    for account_name, part in upstream.accounts.items():
        before = {} if older is None or account_name not in older.by_name else {key.place: key for key in older.by_name[account_name].keys}
        keys, problem = [], None
        for place in part.keys:
            source = source_of(place, environ, folder)
            try:
                keys.append(Key(place, source, await source.read()))
            except SettingsInvalid as error:
                problem = error
                if place in before:
                    keys.append(before[place])
        if not keys and problem is not None:
            problem.field = f"upstreams.{name}.accounts.{account_name}.keys"
            raise problem
        found[account_name] = Account(account_name, part, upstream.kind, keys)
    accounts = Accounts(upstream, found)
    if older is not None:
        accounts.adopt_sessions(older)
    return accounts


async def renew(key: Key, rejected: Secret, now_ms: int) -> Literal["another", "left_out", "known"]:
    """Reads a key again of which the provider did not take `rejected`; tells whether it is another now. If not, it is quarantined, unless it was already."""
    async with key.renewing:
        if key.secret != rejected:
            return "another"
        if key.quarantined:
            return "known"
        if await _is_another(key):
            return "another"
        key.quarantined, key.refused_ms = True, now_ms
        return "left_out"


async def _is_another(key: Key) -> bool:
    """Reads a key's place and takes what it holds into use, if that is another key."""
    try:
        fresh = await key.source.read()
    except SettingsInvalid:
        return False
    if fresh == key.secret:
        return False
    key.secret, key.quarantined = fresh, False
    return True
