"""Which host keys are known, by OpenSSH's files, and how one is added.

A name is looked up as OpenSSH does: with its port if that is not 22 and, if no file has it so, without. A host whose known keys are of other kinds than the
one it offers has another key than the known one, not a further one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import asyncssh
import msgspec

from orchestra.errors import HostKeyRefused, NodeFailed
from orchestra.files import ensure_private_dir, write_atomically
from orchestra.nodes.ssh_config import Hop, SshTarget

KINDS: Final = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}
"""Kinds of host keys and the algorithms that are asked for to get one. Signatures with SHA-1 are not."""


class HostKey(msgspec.Struct, frozen=True):
    """A key that a host showed."""

    kind: str
    fingerprint: str
    """`SHA256:...`, as `ssh-keygen -l` prints it."""
    line: str
    """Its line for a file of known hosts."""


class KnownKey(msgspec.Struct, frozen=True):
    """A key that a file names for a host."""

    file: str
    number: int
    """Line, from 1."""
    key: asyncssh.SSHKey


class Trust(msgspec.Struct, frozen=True):
    """What is known about one host."""

    keys: tuple[KnownKey, ...] = ()
    authorities: tuple[asyncssh.SSHKey, ...] = ()
    revoked: tuple[asyncssh.SSHKey, ...] = ()

    def algorithms(self) -> list[str]:
        """Returns the algorithms to ask for, those of known keys first; nothing leaves it to asyncssh, which then asks for certificates."""
        if self.authorities:
            return []
        known = {each.key.get_algorithm() for each in self.keys}
        kinds = sorted(KINDS, key=lambda kind: kind not in known)
        return [algorithm for kind in kinds for algorithm in KINDS[kind]]


def read_trust(hop: Hop) -> Trust:
    """Reads the files of known hosts. A file that is missing holds nothing, and a line that cannot be read is passed over, as OpenSSH does."""
    lines = [line for name in hop.known_hosts for line in _lines(name)]
    bare = hop.trust_name[1:].partition("]:")[0] if hop.trust_name.startswith("[") else hop.trust_name
    for name in dict.fromkeys((hop.trust_name, bare)):
        keys: list[KnownKey] = []
        authorities: list[asyncssh.SSHKey] = []
        revoked: list[asyncssh.SSHKey] = []
        for file, number, known in lines:
            found = known.match(name, "", None)
            keys += [KnownKey(file, number, key) for key in found[0]]
            authorities += found[1]
            revoked += found[2]
        if keys or authorities or revoked:
            return Trust(tuple(keys), tuple(authorities), tuple(revoked))
    return Trust()


def _lines(name: str) -> list[tuple[str, int, asyncssh.SSHKnownHosts]]:
    try:
        text = Path(name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostKeyRefused(f"the known hosts in {name} cannot be read: {error.strerror}", hint="correct its permissions") from error
    found: list[tuple[str, int, asyncssh.SSHKnownHosts]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                found.append((name, number, asyncssh.import_known_hosts(line)))
            except ValueError:
                continue
    return found


def host_key(hop: Hop, key: asyncssh.SSHKey) -> HostKey:
    """Returns a shown key with its line."""
    words = key.export_public_key("openssh").decode("ascii").split()
    return HostKey(words[0], key.get_fingerprint(), f"{hop.trust_name} {words[0]} {words[1]}")


def refused_key(target: SshTarget, hop: Hop, trust: Trust, offered: asyncssh.SSHKey | None, why: str) -> HostKeyRefused:
    """Returns the error for a key that is not the known one. `why`: what asyncssh said, for keys that are known and worse."""
    if offered is None:
        return HostKeyRefused(
            f"the host key of {hop.where} was refused: {why}", hint="ask whoever runs that machine; nothing was sent to it"
        )
    shown = f"{offered.get_algorithm()} {offered.get_fingerprint()}"
    if not trust.keys:
        add = f"orchestra node trust {target.label}" if hop.alias == target.host else f"ssh {hop.alias}"
        return HostKeyRefused(f"the host key of {hop.where} is not known: it shows {shown}", hint=add)
    same = [each for each in trust.keys if each.key.get_algorithm() == offered.get_algorithm()]
    known = (same or trust.keys)[0]
    replace = f"orchestra node trust {target.label} --replace"
    if hop.alias != target.host:
        replace = f"ssh-keygen -R '{hop.trust_name}' -f {known.file}"
    return HostKeyRefused(
        f"the host key of {hop.where} has CHANGED: it shows {shown}, but line {known.number} of {known.file} has "
        f"{known.key.get_algorithm()} {known.key.get_fingerprint()}",
        hint=f"somebody may be answering in its place; if you know why the key changed, run: {replace}",
    )


def add_known_host(file: Path, key: HostKey) -> bool:
    """Adds a key to a file of known hosts, in one step; returns False if it was there already.

    Raises:
        NodeFailed: The file cannot be written.
    """
    try:
        file = Path(os.path.realpath(file.expanduser()))  # a link stays a link
        if not file.parent.exists():
            ensure_private_dir(file.parent)
        old = file.read_bytes() if file.exists() else b""
        line = key.line.encode()
        if any(each.split()[:3] == line.split() for each in old.splitlines()):
            return False
        write_atomically(file, old + (b"" if not old or old.endswith(b"\n") else b"\n") + line + b"\n", durable=True)
    except OSError as error:
        raise NodeFailed(f"the host key could not be added to {file}: {error.strerror}", hint="correct the permissions there") from error
    return True
