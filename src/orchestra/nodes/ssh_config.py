"""Where SSH goes: what the user's configuration makes of a name, and over which hosts.

The configuration file is read by asyncssh, which knows `Host`, `Match`, `Include` and most options. What decides about trust and keys is taken from it
here and handed over explicitly, because asyncssh turns verification off for `UserKnownHostsFile none`, does not expand that option, and connects to
jump hosts with other rules than ours. `StrictHostKeyChecking` is not looked at: keys are verified always.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final, cast

import asyncssh
import msgspec

from orchestra.errors import NodeUnreachable

PORT: Final = 22
JUMPS_MAX: Final = 8
CONFIG_FILE: Final = "~/.ssh/config"
USER_KNOWN_HOSTS: Final = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
GLOBAL_KNOWN_HOSTS: Final = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
IDENTITY_FILES: Final = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
NOWHERE: Final = frozenset({"none", "/dev/null"})
"""Files of known hosts that switch verification off elsewhere; here they count as not given."""
_TOKEN: Final = re.compile(r"%(.)|\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class SshTarget(msgspec.Struct, frozen=True):
    """Which machine: a host name or an alias of the SSH configuration. What is empty or 0 is left to that configuration."""

    host: str
    user: str = ""
    port: int = 0
    name: str = ""
    """The node's name, for messages."""

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.name or self.host


class SshOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one node's SSH connection."""

    config_file: str = CONFIG_FILE
    """Empty: none. The system's file is not read, as `ssh -F` does not read it either."""
    connect_timeout_ms: int = 10_000
    """From the first packet to the end of the login, for each host on the way."""
    start_timeout_ms: int = 20_000
    """How long the login shell may take to start a program; its start-up files run first."""
    keepalive_ms: int = 5_000
    keepalive_missed_max: int = 2
    """A connection is given up when one more keepalive than this would be due: silence of 15 s with these figures."""
    channels_max: int = 8
    """Programs at a time; OpenSSH allows 10 a connection, and two are kept for ending programs."""
    passphrase_command: tuple[str, ...] = ()
    """Prints the passphrase of encrypted keys as its first line. Without it, `ORCHESTRA_SSH_PASSPHRASE` is used if it is set."""
    passphrase_timeout_ms: int = 60_000
    window_bytes: int = 1 << 20
    """What the node may send ahead of what was taken, for each channel."""
    unread_bytes_max: int = 1 << 20
    """Output of a channel that nobody has read yet; beyond it (and the window) the program waits."""
    output_bytes_max: int = 64 << 20
    error_bytes_max: int = 64 << 10
    close_grace_ms: int = 500
    exposed_ports: tuple[int, ...] = (0,)
    """Ports of the node's loopback that one of this machine is made reachable at. 0 lets the node choose."""


class Hop(msgspec.Struct, frozen=True):
    """One host on the way, after the configuration was asked."""

    alias: str
    host: str
    port: int
    user: str
    trust_name: str
    """The name its key is known by."""
    user_known_hosts: tuple[str, ...]
    global_known_hosts: tuple[str, ...]
    identity_files: tuple[str, ...]
    """Those the configuration names; empty: the usual ones."""
    identities_only: bool
    agent: str
    """Socket of the ssh-agent, or empty."""
    proxy_jump: str
    proxied: bool = False
    """A program of the user's makes the connection (ProxyCommand)."""
    family: int = 0
    """Address family to use (AddressFamily); 0 for any."""
    bind: str = ""
    """Address of ours to connect from (BindAddress)."""

    @property
    def where(self) -> str:
        """What messages call the machine."""
        return f"{self.host}:{self.port}" if self.host == self.alias else f"{self.alias} ({self.host}:{self.port})"

    @property
    def known_hosts(self) -> tuple[str, ...]:
        """Every file its key may be in."""
        return self.user_known_hosts + self.global_known_hosts


def config_path(options: SshOptions) -> str:
    """Returns the configuration file, or nothing if there is none to read.

    Raises:
        NodeUnreachable: Another file than the usual one was named and cannot be read.
    """
    if not options.config_file:
        return ""
    path = os.path.expanduser(options.config_file)
    if os.access(path, os.R_OK):
        return path
    if options.config_file != CONFIG_FILE:
        raise NodeUnreachable(f"the SSH configuration {path} cannot be read", hint="correct the path in the settings")
    return ""


def read_hop(host: str, user: str, port: int, options: SshOptions) -> Hop:
    """Returns what the configuration says about a host.

    Raises:
        NodeUnreachable: The configuration is malformed.
    """
    path = config_path(options)
    given: dict[str, Any] = {"host": host, "config": [path] if path else None, "client_keys": None, "known_hosts": b""}
    given |= {"username": user} if user else {}
    given |= {"port": port} if port else {}
    try:
        found = asyncssh.SSHClientConnectionOptions(x509_trusted_certs=None, tunnel=None, **given)
    except (ValueError, OSError) as error:
        raise NodeUnreachable(f"the SSH configuration {path} cannot be used for {host}: {error}", hint="correct that line") from error
    config = found.config
    alias = cast("str | None", config.get("HostKeyAlias"))
    tokens = {"%": "%", "h": found.host, "n": host, "p": str(found.port), "r": found.username, "d": os.path.expanduser("~")}
    tokens |= {"i": str(os.getuid()), "k": alias or host}

    def expanded(names: object) -> tuple[str, ...]:
        return tuple(os.path.expanduser(_expand(name, tokens)) for name in cast("list[str]", names or []) if name.lower() not in NOWHERE)

    agent = cast("str | None", config.get("IdentityAgent", os.environ.get("SSH_AUTH_SOCK", "")))
    if agent == "SSH_AUTH_SOCK":
        agent = os.environ.get("SSH_AUTH_SOCK", "")
    return Hop(
        alias=host,
        host=found.host,
        port=found.port,
        user=found.username,
        trust_name=alias or (found.host.lower() if found.port == PORT else f"[{found.host.lower()}]:{found.port}"),
        user_known_hosts=expanded(config.get("UserKnownHostsFile")) or tuple(map(os.path.expanduser, USER_KNOWN_HOSTS)),
        global_known_hosts=expanded(config.get("GlobalKnownHostsFile", list(GLOBAL_KNOWN_HOSTS))),
        identity_files=expanded(config.get("IdentityFile")),
        identities_only=bool(config.get("IdentitiesOnly")),
        agent=os.path.expanduser(agent or ""),
        proxy_jump=cast("str | None", config.get("ProxyJump")) or "",
        proxied=bool(config.get("ProxyCommand")),
        family=int(found.family or 0),
        bind=str(config.get("BindAddress") or ""),
    )


def _expand(text: str, tokens: dict[str, str]) -> str:
    """Replaces `%h` and `${HOME}`; what is not known stays as it is, and then names no file."""

    def value(match: re.Match[str]) -> str:
        return tokens.get(match[1], match[0]) if match[1] else os.environ.get(match[2], match[0])

    return _TOKEN.sub(value, text)


def read_route(target: SshTarget, options: SshOptions) -> tuple[Hop, ...]:
    """Returns the hosts to log in to one after another, the target last.

    Raises:
        NodeUnreachable: The configuration is malformed, or its jumps lead on without end.
    """
    route = [read_hop(target.host, target.user, target.port, options)]
    while jumps := [] if not route[0].proxy_jump else [_jump(each, options) for each in route[0].proxy_jump.split(",")]:
        if any(jump in route for jump in jumps):
            return tuple(route)  # `Host *` with a jump covers the jump host too, which is then reached directly
        route = jumps + route
        if len(route) > JUMPS_MAX:
            raise NodeUnreachable(f"ProxyJump leads over more than {JUMPS_MAX} hosts to {target.host}", hint="mend the SSH configuration")
    return tuple(route)


def _jump(text: str, options: SshOptions) -> Hop:
    """Reads `[user@]host[:port]`, also as an `ssh://` address."""
    user, _, place = text.strip().removeprefix("ssh://").rstrip("/").rpartition("@")
    match = re.fullmatch(r"\[(?P<six>[^\]]+)\](?::(?P<six_port>\d{1,5}))?|(?P<host>[^:]+)(?::(?P<port>\d{1,5}))?|(?P<bare>.+)", place)
    if match is None:
        raise NodeUnreachable(f"ProxyJump names no host: {text!r}", hint="mend the SSH configuration")
    host = match["six"] or match["host"] or match["bare"]
    return read_hop(host, user, int(match["six_port"] or match["port"] or 0), options)


def interactive_argv(target: SshTarget, options: SshOptions, line: str) -> tuple[str, ...]:
    """Returns the `ssh` command of a person's terminal that runs a shell line on the target, with the rules we keep ourselves."""
    path = config_path(options)
    hop = read_hop(target.host, target.user, target.port, options)
    settings = (
        "StrictHostKeyChecking=yes",
        "UserKnownHostsFile=" + " ".join(f'"{name}"' for name in hop.user_known_hosts),
        f"ServerAliveInterval={max(1, options.keepalive_ms // 1000)}",
        f"ServerAliveCountMax={options.keepalive_missed_max}",
        f"ConnectTimeout={max(1, options.connect_timeout_ms // 1000)}",
        "ClearAllForwardings=yes",
        "ForwardAgent=no",
        "RemoteCommand=none",
    )
    words = ["ssh", "-t", "-F", path or "none"]
    for setting in settings:
        words += ["-o", setting]
    words += ["-p", str(target.port)] if target.port else []
    words += ["-l", target.user] if target.user else []
    return (*words, "--", target.host, line)


def trust_file(target: SshTarget, options: SshOptions) -> Path:
    """Returns the file that a key of the target belongs into: the first of the user's.

    Raises:
        NodeUnreachable: The configuration is malformed.
    """
    return Path(read_hop(target.host, target.user, target.port, options).user_known_hosts[0])
