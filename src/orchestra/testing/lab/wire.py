"""The wire between the hub and the nodes: a switch in a network namespace of its own, and what it does to packets.

What is dropped is dropped on its way, in neither's own namespace: both ends see silence, as with a pulled cable behind the next router, and the hub's own TCP
is not told that a packet could not be sent. ARP passes, so that a cut looks like a dead route and never like a missing neighbour.
"""

from __future__ import annotations

import threading
from typing import Final, Literal

from orchestra.testing.lab.machine import LabFailed, call_tool

Direction = Literal["both", "to_node", "from_node"]

HUB_ADDRESS: Final = "10.77.0.1"
NODES_MAX: Final = 200
LINK_PREFIX: Final = "miyabi-"
"""Of all links outside a host; none of them is ever in the machine's own network."""
SWITCH: Final = f"{LINK_PREFIX}lab"
HUB_PORT: Final = f"{LINK_PREFIX}hub"

_SIDES: Final[dict[str, tuple[str, ...]]] = {"both": ("oifname", "iifname"), "to_node": ("oifname",), "from_node": ("iifname",)}
"""Direction -> how a rule names the node's port on the switch."""


def address_of(index: int) -> str:
    """Returns the address of the node with this number."""
    return f"10.77.0.{10 + index}"


def port_of(index: int) -> str:
    """Returns the name of a node's port on the switch."""
    return f"{LINK_PREFIX}node{index}"


class Wire:
    """The switch of one lab."""

    def __init__(self, namespace: str, hub_pid: int) -> None:
        self._namespace = namespace
        self._rules: dict[str, list[str]] = {}
        self._lock = threading.Lock()
        self._ip(f"""\
link set lo up
link add {SWITCH} type bridge forward_delay 0 mcast_snooping 0
link set {SWITCH} up
link add {HUB_PORT} type veth peer name eth0 netns {hub_pid}
""")
        _ip_of(hub_pid, _host_batch(HUB_ADDRESS, 0))
        self._ip(f"link set {HUB_PORT} up master {SWITCH}\n")

    def plug(self, index: int, pid: int) -> None:
        """Connects the node whose init has this pid."""
        port = port_of(index)
        self._ip(f"link add {port} type veth peer name eth0 netns {pid}\n")
        _ip_of(pid, _host_batch(address_of(index), index))
        self._ip(f"link set {port} up master {SWITCH}\n")

    def unplug(self, index: int) -> None:
        """Takes the node's cable away, so that no farewell of its connections is heard."""
        self._ip(f"link del {port_of(index)}\n")

    def cut(self, index: int, direction: Direction) -> None:
        """Drops all packets of a node in the given direction."""
        if direction not in _SIDES:
            raise LabFailed(f"there is no direction {direction!r}", hint="known: both, to_node, from_node")
        self._set(index, [f'{side} "{port_of(index)}" meta protocol != arp drop' for side in _SIDES[direction]])

    def loss(self, index: int, percent: int) -> None:
        """Drops so many of a hundred packets in each direction, at random."""
        if not 0 <= percent <= 100:
            raise LabFailed(f"a loss of {percent} percent is not possible", hint="0 to 100")
        chance = f"meta protocol != arp numgen random mod 100 < {percent} drop"
        self._set(index, [f'{side} "{port_of(index)}" {chance}' for side in _SIDES["both"]] if percent else [])

    def heal(self, index: int) -> None:
        """Lets everything through again."""
        self._set(index, [])

    def _set(self, index: int, rules: list[str]) -> None:
        """Replaces the rules of one node; the kernel takes the whole table at once."""
        with self._lock:
            self._rules[port_of(index)] = rules
            lines = "\n".join(f"    {rule}" for port in sorted(self._rules) for rule in self._rules[port])
            chain = f"  chain wire {{\n    type filter hook forward priority 0; policy accept;\n{lines}\n  }}"
            table = "table bridge lab"
            call_tool(["nsenter", f"--net={self._namespace}", "nft", "-f", "-"], f"{table}\ndelete {table}\n{table} {{\n{chain}\n}}\n")

    def _ip(self, batch: str) -> None:
        call_tool(["nsenter", f"--net={self._namespace}", "ip", "-batch", "-"], batch)


def _host_batch(address: str, index: int) -> str:
    """Returns the commands for a host's own end. Its hardware address stays the same over reboots, as a real card's does."""
    return f"""\
link set lo up
link set eth0 address 02:77:00:00:00:{index:02x}
addr add {address}/24 dev eth0
link set eth0 up
"""


def _ip_of(pid: int, batch: str) -> None:
    call_tool(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-"], batch)
