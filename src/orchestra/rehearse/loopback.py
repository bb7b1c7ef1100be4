"""A network with no way out: a network namespace that has a loopback interface only, for this process and everything it starts.

    python3 -I loopback.py PROGRAM [ARGUMENT ...]

brings the interface up and becomes the program; `enclosed` puts `unshare` before it, which makes the namespace. Linux only. An ordinary user needs user
namespaces, stays who it is in the new one, and has its privileges only until the interface is up.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from typing import Final

SIOCGIFFLAGS: Final = 0x8913
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 0x1
IFREQ: Final = "16sh14x"
"""Name of the interface, flags, and the rest of the union."""
INTERFACE: Final = b"lo"
PROBE_SECONDS: Final = 10
ORDINARY: Final = ("--user", "--map-current-user", "--keep-caps")
"""util-linux 2.36. As root of a namespace, programs would find folders of the real root in /tmp that they must not use."""
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4


def unshare_argv() -> list[str]:
    """Returns what makes a network namespace, as far as this user can; nothing where there is no such program."""
    program = shutil.which("unshare", path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin")
    if program is None:
        return []
    return [program, "--net", *(() if os.geteuid() == 0 else ORDINARY), "--"]


def can_enclose() -> bool:
    """Tells whether a network namespace can be made here."""
    unshare = unshare_argv()
    if not unshare:
        return False
    try:
        done = subprocess.run([*enclosed(["true"])], stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def enclosed(argv: Sequence[str]) -> list[str]:
    """Returns what runs a program in a network namespace of its own."""
    return [*unshare_argv(), sys.executable, "-I", __file__, *argv]


def bring_up() -> None:
    """Brings the loopback interface of this namespace up."""
    import fcntl  # here, as other systems lack it

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        _, flags = struct.unpack(IFREQ, fcntl.ioctl(channel, SIOCGIFFLAGS, struct.pack(IFREQ, INTERFACE, 0)))
        fcntl.ioctl(channel, SIOCSIFFLAGS, struct.pack(IFREQ, INTERFACE, flags | IFF_UP))


def main(argv: Sequence[str]) -> None:
    """Becomes the program, in a namespace whose interface is up."""
    bring_up()
    ctypes.CDLL(None).prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    os.execvp(argv[0], list(argv))


if __name__ == "__main__":
    main(sys.argv[1:])
