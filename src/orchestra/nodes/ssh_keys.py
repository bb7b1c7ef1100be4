"""Which keys are shown to a host: those the configuration names first, then what the ssh-agent holds, then the usual files.

sshd ends a login after a few keys (`MaxAuthTries`, 6 unless told), so a key that was named must not come after an agent full of others. All are gathered
here, none by asyncssh, so that a refused login can say what was shown and what was not.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import asyncssh
import msgspec

from orchestra.errors import LoginRefused
from orchestra.nodes.ssh_config import IDENTITY_FILES, Hop, SshOptions
from orchestra.nodes.transport import MS, LocalTransport

PASSPHRASE_ENVIRONMENT: Final = "ORCHESTRA_SSH_PASSPHRASE"

AGENT_MS: Final = 5_000
"""How long an ssh-agent may take to list its keys; one on this machine needs a millisecond."""


class LoginKeys(msgspec.Struct):
    """Keys to show, in order, and words about them."""

    pairs: list[asyncssh.SSHKeyPair] = []
    shown: list[str] = []
    passed_over: list[str] = []
    """Files that hold a key we could not use, and why."""

    def add(self, pair: asyncssh.SSHKeyPair, origin: str) -> None:
        """Adds a key that is not there already."""
        if all(pair.public_data != each.public_data for each in self.pairs):
            self.pairs.append(pair)
            self.shown.append(f"{pair.get_algorithm()} {_fingerprint(pair)} ({origin})")


class Passphrase:
    """Asks for the passphrase of encrypted keys, once, and only if one is met. It is never written anywhere."""

    def __init__(self, options: SshOptions) -> None:
        self._options = options
        self._known: str | None = None

    async def get(self) -> str:
        """Returns the passphrase; nothing if there is none to be had.

        Raises:
            LoginRefused: The command that prints it failed.
        """
        if self._known is None:
            self._known = await self._ask()
        return self._known

    async def _ask(self) -> str:
        command = self._options.passphrase_command
        if not command:
            return os.environ.get(PASSPHRASE_ENVIRONMENT, "")
        hint = "run it by hand; what it prints first is taken as the passphrase"
        try:
            done = await LocalTransport().run(command, timeout_ms=self._options.passphrase_timeout_ms)
        except TimeoutError as late:
            waited = self._options.passphrase_timeout_ms // MS
            raise LoginRefused(f"the passphrase command {command[0]} did not end within {waited} s", hint=hint) from late
        if done.code != 0:
            raise LoginRefused(f"the passphrase command {command[0]} ended with code {done.code}", hint=hint)
        return done.out.decode("utf-8", "replace").partition("\n")[0].rstrip("\r")


@contextlib.asynccontextmanager
async def login_keys(hop: Hop, passphrase: Passphrase) -> AsyncIterator[LoginKeys]:
    """Gathers the keys for one host; those of the agent can be used inside the block only."""
    keys = LoginKeys()
    async with contextlib.AsyncExitStack() as held:
        agent = await _agent_keys(hop, held)
        public = await asyncio.to_thread(_public_parts, hop.identity_files)
        named = [pair for pair in agent if pair.public_data in public]
        for pair in named:
            keys.add(pair, "ssh-agent")
        await _add_files(keys, hop.identity_files, passphrase, held_by_agent={pair.public_data for pair in named})
        if not hop.identities_only:
            for pair in agent:
                keys.add(pair, "ssh-agent")
        if not hop.identity_files:
            await _add_files(keys, tuple(map(os.path.expanduser, IDENTITY_FILES)), passphrase, {pair.public_data for pair in agent})
        yield keys


async def _agent_keys(hop: Hop, held: contextlib.AsyncExitStack) -> Sequence[asyncssh.SSHKeyPair]:
    if not hop.agent or hop.agent.lower() == "none":
        return ()
    try:
        async with asyncio.timeout(AGENT_MS / MS):
            agent = await held.enter_async_context(await asyncssh.connect_agent(hop.agent))
            return await agent.get_keys()
    except (OSError, ValueError):  # no answer in time is an OSError too
        return ()  # an agent that is gone, or that is at the end of a dead connection, holds no keys, and the files may do


def _public_parts(files: Sequence[str]) -> set[bytes]:
    """Returns the public keys that lie beside the files, or in them."""
    found: set[bytes] = set()
    for name in files:
        for path in (f"{name}.pub", name):
            with contextlib.suppress(OSError, ValueError):
                found.add(asyncssh.read_public_key(path).public_data)
    return found


async def _add_files(keys: LoginKeys, files: Sequence[str], passphrase: Passphrase, held_by_agent: set[bytes]) -> None:
    for name in files:
        try:
            data = await asyncio.to_thread(Path(name).read_bytes)
        except FileNotFoundError:
            continue
        except OSError as error:
            keys.passed_over.append(f"{name}: {error.strerror}")
            continue
        if b"PRIVATE KEY" not in data or held_by_agent & await asyncio.to_thread(_public_parts, (name,)):
            continue
        await _add_file(keys, name, passphrase)


async def _add_file(keys: LoginKeys, name: str, passphrase: Passphrase) -> None:
    try:
        try:
            pairs = await asyncio.to_thread(asyncssh.load_keypairs, [name])
        except asyncssh.KeyImportError as error:
            if "assphrase" not in str(error):
                raise
            secret = await passphrase.get()
            if not secret:
                keys.passed_over.append(f"{name}: it is encrypted, and neither the ssh-agent nor a passphrase command opens it")
                return
            pairs = await asyncio.to_thread(asyncssh.load_keypairs, [name], secret)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, OSError) as error:
        keys.passed_over.append(f"{name}: {error}")
        return
    for pair in pairs:
        keys.add(pair, name)


def _fingerprint(pair: asyncssh.SSHKeyPair) -> str:
    try:
        return asyncssh.import_public_key(b"%s %s" % (pair.algorithm, base64.b64encode(pair.key_public_data))).get_fingerprint()
    except ValueError:
        return "of a kind that cannot be shown"


def describe(keys: LoginKeys) -> str:
    """Says which keys were shown and which were not."""
    shown = "; ".join(keys.shown) or "none"
    return f"keys shown: {shown}" + (f"; not shown: {'; '.join(keys.passed_over)}" if keys.passed_over else "")
