"""Where everything is put together: the only package that knows all adapters. Interfaces reach the orchestra through the functions here."""

from orchestra.bootstrap.care import LedgerCare, backup, doctor, ledger_care, restore
from orchestra.bootstrap.coordinator import Coordinator
from orchestra.bootstrap.launch import (
    Hosted,
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

__all__ = [
    "Coordinator",
    "Hosted",
    "LedgerCare",
    "backup",
    "connect",
    "coordinator_running",
    "doctor",
    "end_leftovers",
    "host",
    "ledger_care",
    "load_settings",
    "restore",
    "serve_forever",
    "start_in_window",
    "supervise",
    "wait_window_gone",
]
