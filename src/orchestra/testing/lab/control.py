"""Orders to a running lab from another process: one JSON line each way through a Unix socket in the lab's folder."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

import msgspec

from orchestra.errors import OrchestraError
from orchestra.testing.lab.lab import Lab
from orchestra.testing.lab.machine import LabFailed
from orchestra.testing.lab.node import LabNode
from orchestra.testing.lab.wire import Direction

SOCKET: Final = "control.sock"
CLIENT_S: Final = 10
"""What a client gets to hand in its line; one that says nothing must not hold up the others."""
ORDER_BYTES_MAX: Final = 64 << 10


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody wants done."""

    command: str
    node: str = ""
    argument: str = ""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of it: a text to show, or an error."""

    text: str = ""
    error: str = ""
    hint: str = ""


def _percent(node: LabNode, argument: str) -> None:
    if not argument.isdecimal():
        raise LabFailed("loss needs a whole number of percent", hint="loss NODE 30")
    node.loss(int(argument))


def _processes(node: LabNode, argument: str) -> str:
    return "\n".join(f"{pid} {line}" for pid, line in node.processes().items() if argument in line)


NODE_COMMANDS: Final[dict[str, tuple[str, Callable[[LabNode, str], object]]]] = {
    "cut": (
        "drop its packets; argument: both (default), to_node or from_node",
        lambda node, word: node.cut(cast(Direction, word or "both")),
    ),
    "loss": ("drop so many percent of its packets; argument: 0 to 100", _percent),
    "heal": ("end a cut or a loss", lambda node, _: node.heal()),
    "reboot": ("power off and on", lambda node, _: node.reboot()),
    "stop-sshd": ("end the SSH server's listener; sessions go on", lambda node, _: node.stop_sshd()),
    "start-sshd": ("start it again", lambda node, _: node.start_sshd()),
    "restart-sshd": ("both", lambda node, _: node.restart_sshd()),
    "pause-sshd-sessions": ("stop the processes of its connections", lambda node, _: node.pause_sshd_sessions()),
    "resume-sshd-sessions": ("let them go on", lambda node, _: node.resume_sshd_sessions()),
    "replace-host-key": ("give it another host key", lambda node, _: node.replace_host_key()),
    "restore-host-key": ("give it its own host key back", lambda node, _: node.restore_host_key()),
    "fill-disk": ("make its /home full", lambda node, _: node.fill_disk()),
    "free-disk": ("make room in it again", lambda node, _: node.free_disk()),
    "kill-tmux": ("kill its tmux servers; says how many", lambda node, _: str(node.kill_tmux())),
    "processes": ("list what runs on it; argument: only lines with this text", _processes),
}
"""Command -> what it does, and how."""


def obey(lab: Lab, order: Order) -> Answer:
    """Carries out one order."""
    try:
        if order.command == "nodes":
            return Answer("\n".join(f"{node.name} {node.address} init {node.init_pid}" for node in lab.nodes.values()))
        if order.command == "add":
            node = lab.add_node(order.node)
            return Answer(f"{node.name} {node.address} init {node.init_pid}")
        if order.command not in NODE_COMMANDS:
            raise LabFailed(f"there is no command {order.command!r}", hint=f"known: nodes, add, {', '.join(NODE_COMMANDS)}")
        if order.node not in lab.nodes:
            raise LabFailed(f"there is no machine {order.node!r}", hint=f"known: {', '.join(lab.nodes)}")
        said = NODE_COMMANDS[order.command][1](lab.nodes[order.node], order.argument)
        return Answer(said if isinstance(said, str) else "")
    except OrchestraError as error:
        return Answer(error=error.message, hint=error.hint)


def serve(lab: Lab) -> None:
    """Carries out orders, one after the other, until interrupted."""
    with _at(lab.folder) as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        (lab.folder / SOCKET).unlink(missing_ok=True)
        listener.bind(path)
        (lab.folder / SOCKET).chmod(0o600)
        listener.listen()
        try:
            while True:
                client, _ = listener.accept()
                with client:
                    client.settimeout(CLIENT_S)
                    _attend(lab, client)
        finally:
            (lab.folder / SOCKET).unlink(missing_ok=True)


def send(folder: Path, order: Order) -> Answer:
    """Hands an order to the lab in the folder and waits for what came of it.

    Raises:
        LabFailed: No lab is running there.
    """
    with _at(folder) as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(path)
            client.sendall(msgspec.json.encode(order) + b"\n")
            line = client.makefile("rb").readline()
        except OSError as error:
            raise _no_way(folder, error) from error
    if not line:
        raise LabFailed(f"the lab in {folder} ended before it answered")
    return msgspec.json.decode(line, type=Answer)


def _no_way(folder: Path, error: OSError) -> LabFailed:
    """Says why a lab cannot be given orders."""
    if isinstance(error, PermissionError):
        return LabFailed(f"the lab in {folder} takes orders from root only", hint="give the order as root: sudo")
    return LabFailed(
        f"no lab is running in {folder}: {error.strerror}", hint=f"start one: {sys.executable} -m orchestra.testing.lab up FOLDER"
    )


def _attend(lab: Lab, client: socket.socket) -> None:
    try:
        line = client.makefile("rb").readline(ORDER_BYTES_MAX)
        try:
            answer = obey(lab, msgspec.json.decode(line, type=Order))
        except msgspec.DecodeError as error:
            answer = Answer(error=f"that is no order: {error}")
        client.sendall(msgspec.json.encode(answer) + b"\n")
    except OSError:
        return  # the client is gone or too slow; the next one is served


@contextmanager
def _at(folder: Path) -> Iterator[str]:
    """Gives a short path of the socket: the address of a Unix socket has 108 bytes, a folder's path may have more."""
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _no_way(folder, error) from error
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
