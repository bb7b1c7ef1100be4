"""Keys that came in the environment, taken out of it: the environment of a process can be read by whoever may look at the process, and all its children get it.

A process that takes a key has it in its memory alone. It goes on to the next one by a pipe that holds it until it is read, or by a named pipe where the
next one is no child. Nothing of that is ever on a disk, in an environment or in a command line.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from orchestra.errors import PortFailed

FD_VARIABLE: Final = "ORCHESTRA_KEYS_FD"
"""Says at which descriptor a child finds them."""
BYTES_MAX: Final = 60_000
"""Of all together: as much as a pipe holds."""

_held: dict[str, str] = {}
"""Of this process, as `os.environ` is."""


def environment() -> dict[str, str]:
    """Returns this process's variables, those included that were taken out."""
    return {**os.environ, **_held}


def take(names: Iterable[str]) -> dict[str, str]:
    """Takes variables out of the environment, also for those who look at the process from outside; returns all that were taken so far."""
    for name in names:
        if name in os.environ:
            _held[name] = os.environ[name]
            _wipe(name)
            del os.environ[name]
    return dict(_held)


def _wipe(name: str) -> None:
    """Overwrites a value where the system shows it: `/proc/PID/environ` is the memory in which the process got it."""
    with contextlib.suppress(OSError, AttributeError):
        get = ctypes.CDLL(None).getenv
        get.restype = ctypes.c_void_p
        place = get(os.fsencode(name))
        if place:
            ctypes.memset(place, 0, len(ctypes.string_at(place)))


def accept(offered: Path | None = None) -> None:
    """Takes the keys that another process has for this one: by a descriptor that the environment names, or at the named pipe.

    Raises:
        PortFailed: They are not there any more.
    """
    number = os.environ.pop(FD_VARIABLE, "")
    if number.isdigit():
        _take_in(int(number))
    if offered is not None:
        try:
            handle = os.open(offered, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            raise PortFailed(f"nobody offers keys at {offered}: {exc.strerror}", hint="use `orchestra up`") from exc
        _take_in(handle)
        offered.unlink(missing_ok=True)


def _take_in(handle: int) -> None:
    data = b""
    with contextlib.suppress(BlockingIOError):
        while not data.endswith(b"\n") and (part := os.read(handle, BYTES_MAX)):
            data += part
    if handle:
        os.close(handle)
    else:  # standard input stays something
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, handle)
        os.close(nothing)
    try:
        _held.update(msgspec.json.decode(data, type=dict[str, str]))
    except msgspec.DecodeError as exc:
        raise PortFailed("the keys did not arrive", hint="start it again") from exc


@contextmanager
def pipe_with(keys: Mapping[str, str]) -> Iterator[int]:
    """Gives a descriptor for a child, at which it reads the keys.

    Raises:
        PortFailed: They are too many for a pipe.
    """
    reading, writing = os.pipe()
    try:
        try:
            os.write(writing, _packed(keys))
        finally:
            os.close(writing)
        yield reading
    finally:
        os.close(reading)


@contextmanager
def offered(path: Path, keys: Mapping[str, str]) -> Iterator[None]:
    """Offers the keys at a named pipe in a private folder, once, to a process that is no child; for as long as it is held open here.

    Raises:
        PortFailed: The pipe cannot be made, or they are too many for it.
    """
    data = _packed(keys)
    try:
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
        handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise PortFailed(f"{path} cannot be made: {exc.strerror}", hint="check its folder") from exc
    try:
        os.write(handle, data)
        yield
    finally:
        os.close(handle)
        path.unlink(missing_ok=True)


def _packed(keys: Mapping[str, str]) -> bytes:
    data = msgspec.json.encode(dict(keys)) + b"\n"
    if len(data) > BYTES_MAX:
        raise PortFailed(f"the keys in the environment have {len(data)} bytes", hint="put them into files, and name those in gateway.file")
    return data
