"""What one call of the command line knows: where the orchestra lives, how to show things, and how to reach it."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from orchestra.edges.cli.render import Face, Renderer

if TYPE_CHECKING:
    from orchestra.edges.cli.connect import Wiring
    from orchestra.usecases import UseCases

T = TypeVar("T")

ROOT_VARIABLE: Final = "ORCHESTRA_ROOT"
ROOT_DEFAULT: Final = ".codex"


async def pause(seconds: float) -> None:
    """Waits; asyncio is imported only where something waits."""
    import asyncio

    await asyncio.sleep(seconds)


class Session:
    """Filled in by the shared options. A test hands in its own `wiring` and `pause`."""

    def __init__(self, wiring: Wiring | None = None, pause: Callable[[float], Awaitable[None]] = pause) -> None:
        self.root = Path(os.environ.get(ROOT_VARIABLE) or ROOT_DEFAULT)
        self.flags: dict[str, str] = {}
        """Settings given on the command line, by path."""
        self.json = False
        self.quiet = False
        self.verbose = False
        self.pause = pause
        self._wiring = wiring
        self._renderer: Renderer | None = None

    @property
    def face(self) -> Face:
        """How results are shown; `--json` goes before `--quiet`."""
        return Face.JSON if self.json else Face.QUIET if self.quiet else Face.HUMAN

    @property
    def render(self) -> Renderer:
        """The renderer of this call; made when first needed, so after the options were read."""
        if self._renderer is None or self._renderer.face is not self.face:
            self._renderer = Renderer(self.face, sys.stdout, sys.stderr, verbose=self.verbose)
        return self._renderer

    @property
    def wiring(self) -> Wiring:
        """The functions that start and reach orchestras."""
        if self._wiring is None:
            from orchestra.edges.cli.connect import real_wiring

            self._wiring = real_wiring()
        return self._wiring

    def ask(self, question: Callable[[UseCases], Coroutine[Any, Any, T]], *, ours: bool = False) -> T:
        """Returns what the running orchestra answers; `ours` was started by this call, and has its settings.

        Raises:
            CoordinatorUnreachable: None is running for the root.
            SettingsInvalid: A setting of this call is none.
        """

        import asyncio

        if self.flags and not ours:
            self.wiring.load_settings(self.root, self.flags)
            self.render.note("--set is for what a command starts; the orchestra that answers keeps the settings it has")

        async def put() -> T:
            async with self.wiring.connect(self.root) as use_cases:
                return await question(use_cases)

        return asyncio.run(put())
