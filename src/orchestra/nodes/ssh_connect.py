"""One login: TCP or a jump host, host key, keys. Every way it can fail has its own words and its own remedy."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from typing import Any, Final

import asyncssh

from orchestra.errors import LoginRefused, NodeUnreachable
from orchestra.nodes.ssh_config import Hop, SshOptions, SshTarget, config_path, read_route
from orchestra.nodes.ssh_keys import LoginKeys, Passphrase, describe, login_keys
from orchestra.nodes.ssh_trust import HostKey, Trust, host_key, read_trust, refused_key
from orchestra.nodes.transport import MS

KEEPALIVE_SHARE: Final = 0.9
"""A loss is noticed after so much of three keepalives, and acted on within them."""
KNOCK_MS: Final = 500
TOO_MANY_KEYS: Final = "Too many authentication failures"
_ERRNO: Final = re.compile(r"\[Errno (-?\d+)\]")


class _Client(asyncssh.SSHClient):
    """Remembers a host key that is not known."""

    def __init__(self) -> None:
        self.offered: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.offered = key
        return False


async def open_route(target: SshTarget, options: SshOptions) -> list[asyncssh.SSHClientConnection]:
    """Logs in to the target, over its jump hosts; returns all connections, that of the target last.

    Raises:
        HostKeyRefused: A host's key is unknown, changed or revoked.
        LoginRefused: A host takes none of our keys.
        NodeUnreachable: A host cannot be reached.
    """
    route = await asyncio.to_thread(read_route, target, options)
    passphrase = Passphrase(options)
    opened: list[asyncssh.SSHClientConnection] = []
    try:
        for hop in route:
            opened.append(await _login(target, hop, options, passphrase, opened[-1] if opened else None))
    except BaseException:
        await close_route(opened)
        raise
    return opened


async def close_route(opened: list[asyncssh.SSHClientConnection]) -> None:
    """Closes connections, the innermost first; one whose peer is silent is dropped."""
    for connection in reversed(opened):
        connection.close()
        try:
            async with asyncio.timeout(2):
                await connection.wait_closed()
        except TimeoutError:
            connection.abort()


async def offered_host_key(target: SshTarget, options: SshOptions | None = None) -> HostKey:
    """Returns the key a host shows, known or not. Jump hosts are logged in to; of the target nothing but its key is taken.

    Raises:
        HostKeyRefused: The key of a jump host is not known.
        NodeUnreachable: The host cannot be reached, or has no key of a kind that is taken.
    """
    options = options or SshOptions()
    *jumps, last = await asyncio.to_thread(read_route, target, options)
    passphrase = Passphrase(options)
    opened: list[asyncssh.SSHClientConnection] = []
    client = _Client()
    try:
        for hop in jumps:
            opened.append(await _login(target, hop, options, passphrase, opened[-1] if opened else None))
        tunnel = opened[-1] if opened else None
        opened.append(await _connect(last, options, client, Trust(), LoginKeys(), tunnel, await _reached(last, options, tunnel)))
    except asyncssh.HostKeyNotVerifiable as refused:
        if client.offered is not None:
            return host_key(last, client.offered)
        raise NodeUnreachable(f"{last.where} showed no usable host key: {refused.reason}") from refused
    except (asyncssh.Error, OSError, UnicodeError) as error:
        raise _unreachable(last, options, error) from error
    finally:
        await close_route(opened)
    raise NodeUnreachable(f"{last.where} let us in without showing a host key")


async def _login(
    target: SshTarget, hop: Hop, options: SshOptions, passphrase: Passphrase, tunnel: asyncssh.SSHClientConnection | None
) -> asyncssh.SSHClientConnection:
    trust = await asyncio.to_thread(read_trust, hop)
    client = _Client()
    sock = await _reached(hop, options, tunnel)  # before a key is touched: nobody is asked for a passphrase while a machine is off
    try:
        return await _log_in(target, hop, options, passphrase, tunnel, client, trust, sock)
    except BaseException:
        if sock is not None:
            sock.close()
        raise


async def _log_in(
    target: SshTarget,
    hop: Hop,
    options: SshOptions,
    passphrase: Passphrase,
    tunnel: asyncssh.SSHClientConnection | None,
    client: _Client,
    trust: Trust,
    sock: socket.socket | None,
) -> asyncssh.SSHClientConnection:
    async with login_keys(hop, passphrase) as keys:
        try:
            return await _connect(hop, options, client, trust, keys, tunnel, sock)
        except asyncssh.HostKeyNotVerifiable as refused:
            raise refused_key(target, hop, trust, client.offered, refused.reason) from refused
        except asyncssh.PermissionDenied as refused:
            raise _login_refused(hop, keys, refused.reason) from refused
        except (asyncssh.Error, OSError, UnicodeError) as error:
            if TOO_MANY_KEYS in str(error):
                raise _login_refused(hop, keys, "it let us show no more keys") from error
            raise _unreachable(hop, options, error) from error


async def _connect(
    hop: Hop,
    options: SshOptions,
    client: _Client,
    trust: Trust,
    keys: LoginKeys,
    tunnel: asyncssh.SSHClientConnection | None,
    sock: socket.socket | None,
) -> asyncssh.SSHClientConnection:
    path = config_path(options)
    known: Any = ([each.key for each in trust.keys], list(trust.authorities), list(trust.revoked), [], [], [], [])
    algorithms = trust.algorithms()
    rules: dict[str, Any] = {"server_host_key_algs": algorithms} if algorithms else {}
    async with asyncio.timeout(options.connect_timeout_ms / MS):
        if sock is not None:
            rules["sock"] = sock
        return await asyncssh.connect(
            hop.alias,
            hop.port,
            username=hop.user,
            config=[path] if path else None,
            tunnel=tunnel,
            client_factory=lambda: client,
            known_hosts=lambda _host, _address, _port: known,
            x509_trusted_certs=None,
            client_keys=keys.pairs or None,
            agent_path=None,
            pkcs11_provider=None,
            preferred_auth=["publickey"],
            public_key_auth=True,
            password_auth=False,
            kbdint_auth=False,
            host_based_auth=False,
            gss_kex=False,
            gss_auth=False,
            agent_forwarding=False,
            x11_forwarding=False,
            env=None,
            send_env=None,
            request_pty=False,
            command=None,
            connect_timeout=None,
            login_timeout=0,
            keepalive_interval=options.keepalive_ms * KEEPALIVE_SHARE / MS,
            keepalive_count_max=options.keepalive_missed_max,
            **rules,
        )


async def _reached(hop: Hop, options: SshOptions, tunnel: asyncssh.SSHClientConnection | None) -> socket.socket | None:
    """Returns a TCP connection to a host that is reached directly, None for the others.

    Raises:
        NodeUnreachable: Nobody answered.
    """
    if tunnel is not None or hop.proxied:
        return None
    try:
        async with asyncio.timeout(options.connect_timeout_ms / MS):
            return await _reach(hop)
    except (OSError, UnicodeError) as error:
        raise _unreachable(hop, options, error) from error


async def _reach(hop: Hop) -> socket.socket:
    """Opens a TCP connection: tries again every half second beside the tries before, and takes the first that is answered.

    The kernel repeats an unanswered attempt after 1, 3, 7 seconds and so on, so a link that is back would be found late; a slow link must not be cut off
    by short deadlines either.
    """
    loop = asyncio.get_running_loop()
    places = await loop.getaddrinfo(hop.host, hop.port, type=socket.SOCK_STREAM, family=hop.family)
    tries: dict[asyncio.Task[None], socket.socket] = {}
    answered: socket.socket | None = None
    failures: list[OSError] = []
    try:
        while answered is None:
            family, kind, protocol, _, address = places[(len(tries) + len(failures)) % len(places)]
            try:
                attempt = _socket(hop, family, kind, protocol)
            except OSError as missing:  # this kernel has no such addresses
                failures.append(missing)
                if not tries and len(failures) >= len(places):
                    raise
                continue
            tries[asyncio.ensure_future(loop.sock_connect(attempt, address))] = attempt
            done, _ = await asyncio.wait(tries, timeout=KNOCK_MS / MS, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                tried, error = tries.pop(each), each.exception()
                if error is None and answered is None:
                    answered = tried
                else:
                    tried.close()
                    failures += [error] if isinstance(error, OSError) else []
            if answered is None and not tries and len(failures) >= len(places):
                raise failures[0]
        return answered
    finally:
        for each in tries:
            each.cancel()
        await asyncio.gather(*tries, return_exceptions=True)
        for left in tries.values():
            left.close()


def _socket(hop: Hop, family: int, kind: int, protocol: int) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        if hop.bind:
            made.bind((hop.bind, 0))
    except OSError:
        made.close()
        raise
    return made


def _login_refused(hop: Hop, keys: LoginKeys, why: str) -> LoginRefused:
    return LoginRefused(
        f"{hop.where} refused user {hop.user!r}: {why}; {describe(keys)}",
        hint=f"add one of these public keys to ~/.ssh/authorized_keys of {hop.user} there, or name the right key or user in ~/.ssh/config",
    )


def _unreachable(hop: Hop, options: SshOptions, error: asyncssh.Error | OSError | UnicodeError) -> NodeUnreachable:
    """Says what went wrong on the way; `str` of a failure on several addresses names the errno of each."""
    numbers = {error.errno} if isinstance(error, OSError) and error.errno else {int(each) for each in _ERRNO.findall(str(error))}
    if isinstance(error, socket.gaierror | UnicodeError):
        return NodeUnreachable(
            f"the name {hop.host} was not found: {error}", hint="correct the node's host, or add it to ~/.ssh/config or to DNS"
        )
    if errno.ECONNREFUSED in numbers:
        return NodeUnreachable(
            f"{hop.where} refused the connection: nothing listens there", hint="start its SSH server, or correct the node's port"
        )
    if isinstance(error, TimeoutError) or errno.ETIMEDOUT in numbers:
        return NodeUnreachable(
            f"{hop.where} did not answer within {options.connect_timeout_ms} ms", hint="is it on, and does a firewall let SSH through?"
        )
    if numbers & {errno.EHOSTUNREACH, errno.ENETUNREACH}:
        return NodeUnreachable(f"there is no route to {hop.where}", hint="check the network and the VPN of this machine")
    if isinstance(error, asyncssh.ChannelOpenError):
        return NodeUnreachable(
            f"the jump host cannot reach {hop.where}: {error.reason}", hint="try it from there: ssh to the jump host first"
        )
    if isinstance(error, asyncssh.KeyExchangeFailed):
        return NodeUnreachable(f"{hop.where} and we share no algorithm: {error.reason}", hint="update its SSH server")
    return NodeUnreachable(
        f"{hop.where} ended the connection before the login: {error}",
        hint="its log says why; too many logins at once (MaxStartups) do that",
    )
