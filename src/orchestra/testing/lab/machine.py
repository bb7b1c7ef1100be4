"""The files a machine in the lab is made of: keys, accounts, the configuration of its SSH server, what its home starts with."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
from pathlib import Path
from typing import Final

from orchestra.errors import PortFailed

USER: Final = "ubuntu"
PORT: Final = 22


class LabFailed(PortFailed):
    """The lab cannot be built here, or one of its machines does not do what was asked."""


SSHD_CONFIG: Final = f"""\
Port {PORT}
AddressFamily inet
HostKey /run/lab/ssh_host_ed25519_key
AuthorizedKeysFile /run/lab/authorized_keys
AuthenticationMethods publickey
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
PermitUserEnvironment no
UsePAM no
UseDNS no
MaxSessions 10
ClientAliveInterval 0
PrintMotd no
PrintLastLog no
PidFile /run/sshd.pid
Subsystem sftp internal-sftp
LogLevel VERBOSE
"""
"""OpenSSH's defaults where they matter to a client (MaxSessions, MaxStartups); nothing of the machine's own configuration is read."""

BASHRC: Final = """\
# Machines print things at login that no program asked for; this one does so on purpose.
echo "Welcome to $(hostname)! Last maintenance: never."
"""


def free_ids() -> tuple[int, int]:
    """Returns a user and a group id that nobody has here: inside a node only its own user may own what it makes."""
    users, groups = {each.pw_uid for each in pwd.getpwall()}, {each.gr_gid for each in grp.getgrall()}
    number = next(number for number in range(1000, 60_000) if number not in users and number not in groups)
    return number, number


def write_accounts(folder: Path, name: str, address: str, uid: int, gid: int) -> None:
    """Writes the node's own files of /etc."""
    sshd = pwd.getpwnam("sshd")
    files = {
        "passwd": f"root:x:0:0:root:/root:/bin/bash\nsshd:x:{sshd.pw_uid}:65534::/run/sshd:/usr/sbin/nologin\n"
        f"nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n{USER}:x:{uid}:{gid}::/home/{USER}:/bin/bash\n",
        "group": f"root:x:0:\ntty:x:5:\nnogroup:x:65534:\n{USER}:x:{gid}:\n",
        "shadow": f"root:*:19000:0:99999:7:::\nsshd:*:19000::::::\nnobody:*:19000::::::\n{USER}:*:19000:0:99999:7:::\n",
        "hostname": f"{name}\n",
        "hosts": f"127.0.0.1 localhost\n{address} {name}\n",
        "resolv.conf": "",
        "sshd_config": SSHD_CONFIG,
    }
    for file, text in files.items():
        write_file(folder / file, text, 0o600 if file == "shadow" else 0o644)


def write_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Writes a file at one stroke, with a mode that does not depend on the umask. What is bound to the old one keeps that."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    fresh.chmod(mode)
    fresh.replace(path)


def make_folder(path: Path, mode: int = 0o755) -> Path:
    """Makes a folder whose mode does not depend on the umask."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    return path


def make_key(path: Path) -> str:
    """Makes an ed25519 key without a passphrase; returns its public half, type and key."""
    for each in (path, path.with_name(f"{path.name}.pub")):
        each.unlink(missing_ok=True)
    call_tool(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)])
    return " ".join(path.with_name(f"{path.name}.pub").read_text(encoding="ascii").split()[:2])


def call_tool(argv: list[str], text: str = "") -> str:
    """Runs a system tool to its end and returns what it printed.

    Raises:
        LabFailed: It said no; the message has its words.
    """
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"  # an ordinary user's PATH lacks these on Debian
    done = subprocess.run(
        argv, input=text, capture_output=True, encoding="utf-8", errors="replace", check=False, env={"PATH": path, "LC_ALL": "C"}
    )
    if done.returncode:
        raise LabFailed(f"{' '.join(argv[:6])}: {done.stderr.strip() or f'ended with {done.returncode}'}")
    return done.stdout
