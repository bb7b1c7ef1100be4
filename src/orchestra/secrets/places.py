"""Keys from the environment, from a file that only we may read, and from a command such as a keyring's or a vault's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from orchestra.errors import SettingsInvalid
from orchestra.secret import Secret

KEY_BYTES_MAX: Final = 16_384
COMMAND_TIMEOUT_S: Final = 30


def _checked(text: str, name: str) -> Secret:
    """Returns the key without the white space around it; what could not stand in a header is refused without being shown."""
    key = text.strip()
    if not key:
        raise SettingsInvalid(f"{name} holds no key", field=name, hint="put the key there, or take this place out of the configuration")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsInvalid(f"what {name} holds is not one key", field=name, hint="it has to be one line of printable characters")
    return Secret(key)


class EnvironmentSecret:
    """A variable of this process."""

    def __init__(self, variable: str, environ: Mapping[str, str]) -> None:
        self.name = f"env {variable}"
        self._variable = variable
        self._environ = environ

    async def read(self) -> Secret:
        return _checked(self._environ.get(self._variable, ""), self.name)


class FileSecret:
    """A file that nobody else may read."""

    def __init__(self, path: Path) -> None:
        self.name = f"file {path}"
        self._path = path

    async def read(self) -> Secret:
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as exc:
            raise SettingsInvalid(f"{self.name} cannot be read: {exc.strerror}", field=self.name, hint="make the file") from exc
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            os.close(handle)
            raise SettingsInvalid(f"{self.name} is no file", field=self.name, hint="make it a plain file of this user")
        with os.fdopen(handle, "rb") as file:
            if found.st_uid not in {os.geteuid(), 0}:
                raise SettingsInvalid(f"{self.name} is no file of ours", field=self.name, hint="make it a plain file of this user")
            if found.st_mode & 0o077:
                raise SettingsInvalid(f"others may read {self.name}", field=self.name, hint=f"chmod 600 {self._path}")
            return _checked(file.read(KEY_BYTES_MAX).decode("utf-8", "replace"), self.name)


class CommandSecret:
    """What a program prints."""

    def __init__(self, argv: tuple[str, ...]) -> None:
        self.name = f"command {argv[0]}"
        self._argv = argv

    async def read(self) -> Secret:
        # A pipe of our own: asyncio's would be open, and waited for, as long as some agent that the program started in the background has it.
        reading, writing = os.pipe()
        try:
            status = await self._run(writing)
            output = b""
            os.set_blocking(reading, False)
            with contextlib.suppress(BlockingIOError):
                output = os.read(reading, KEY_BYTES_MAX)
        finally:
            os.close(reading)
        if status != 0:
            raise SettingsInvalid(f"{self.name} ended with {status}", field=self.name, hint="run it by hand to see why")
        return _checked(output.decode("utf-8", "replace"), self.name)

    async def _run(self, output: int) -> int:
        """Runs it to its end; returns its status."""
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=asyncio.subprocess.DEVNULL
            )
        except OSError as exc:
            raise SettingsInvalid(f"{self.name} cannot be run: {exc.strerror}", field=self.name, hint="check its path") from exc
        finally:
            os.close(output)
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                return await process.wait()
        except TimeoutError as exc:
            raise SettingsInvalid(f"{self.name} gave no key within {COMMAND_TIMEOUT_S} s", field=self.name, hint="run it by hand") from exc
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
