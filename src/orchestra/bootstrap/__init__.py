"""Where everything is put together: the only package that knows all adapters. Interfaces reach the orchestra through the functions here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestra.bootstrap.care import LedgerCare, backup, doctor, ledger_care, restore
from orchestra.bootstrap.coordinator import Coordinator
from orchestra.bootstrap.launch import (
    Hosted,
    abandon,
    connect,
    coordinator_running,
    end_leftovers,
    host,
    load_settings,
    serve_forever,
    start_in_window,
    supervise,
    wait_window_gone,
)
from orchestra.bootstrap.nodes import check_nodes, kinds_on, known_nodes
from orchestra.bootstrap.shelf import open_blank
from orchestra.bootstrap.wiring import task_defaults
from orchestra.settings import Settings

if TYPE_CHECKING:
    from orchestra.bootstrap.trust import KeyOffer

__all__ = [
    "Coordinator",
    "Hosted",
    "LedgerCare",
    "abandon",
    "backup",
    "check_nodes",
    "connect",
    "coordinator_running",
    "doctor",
    "end_leftovers",
    "host",
    "kinds_on",
    "known_nodes",
    "ledger_care",
    "load_settings",
    "offered_key",
    "open_blank",
    "restore",
    "serve_forever",
    "start_in_window",
    "supervise",
    "task_defaults",
    "trust_key",
    "wait_window_gone",
]


async def offered_key(root: Path, settings: Settings, name: str) -> KeyOffer:
    """See `orchestra.bootstrap.trust`, which loads SSH and is therefore loaded only here."""
    from orchestra.bootstrap import trust

    return await trust.offered_key(root, settings, name)


def trust_key(offer: KeyOffer, *, replace: bool) -> bool:
    """See `orchestra.bootstrap.trust`."""
    from orchestra.bootstrap import trust

    return trust.trust_key(offer, replace=replace)
