"""Logs: one JSON object a line, rotated, with an `action` slug. Commentary only; the ledger is the truth."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

import msgspec

from orchestra.projections import rfc3339
from orchestra.protocol.text import printable

FILE_BYTES_MAX: Final = 8 << 20
FILES_KEPT: Final = 4
_KNOWN: Final = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object; the message is the action."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {
            name: value if isinstance(value, int | float | bool) else printable(str(value))
            for name, value in vars(record).items()
            if name not in _KNOWN
        }
        values = {
            "time": rfc3339(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "action": record.getMessage(),
            "from": record.name,
            **extra,
        }
        if record.exc_info:
            values["trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(values).decode()


def start_logging(folder: Path) -> logging.Handler:
    """Sends the package's log to `<folder>/coordinator.log`; returns the handler, for `stop_logging`."""
    handler = RotatingFileHandler(folder / "coordinator.log", maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT, delay=True)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("orchestra")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False
    return handler


def stop_logging(handler: logging.Handler) -> None:
    """Takes the handler out and closes its file."""
    logging.getLogger("orchestra").removeHandler(handler)
    handler.close()
