"""The mock model server, `aimock` from npm, as a child on a free port of the loopback interface."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from orchestra.errors import PortFailed

START_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 0.02
LISTENING: Final = re.compile(r"listening on (http://[0-9.]+:[0-9]+)")
WORDS_MAX: Final = 2000


@contextmanager
def mock_model(argv: Sequence[str], fixtures: Sequence[Mapping[str, Any]], folder: Path, env: Mapping[str, str]) -> Iterator[str]:
    """Runs the server with these fixtures and gives its address; it is gone afterwards, also when this process is killed.

    Args:
        argv: The program, without options.
        fixtures: What it replies.
        folder: Where the fixtures and its log are kept.
        env: Its environment.

    Raises:
        PortFailed: It did not start; the message has its last words.
    """
    file, log = folder / "fixtures.json", folder / "model.log"
    file.write_text(json.dumps({"fixtures": list(fixtures)}), encoding="utf-8")
    setpriv = shutil.which("setpriv", path=env.get("PATH"))
    tied = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
    command = [*tied, *argv, "--port", "0", "--host", "127.0.0.1", "--fixtures", str(file)]
    try:
        with log.open("wb") as out:
            process = subprocess.Popen(command, cwd=folder, env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    except OSError as exc:
        raise PortFailed(f"the mock model server {argv[-1]} cannot be started: {exc.strerror}", hint="is node installed?") from exc
    try:
        yield _wait_address(process, log)
    finally:
        process.kill()
        process.wait()


def _wait_address(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while True:
        running = process.poll() is None
        said = log.read_text("utf-8", "replace")
        if found := LISTENING.search(said):
            return found[1]
        if not running or time.monotonic() > deadline:
            words = said[-WORDS_MAX:].strip()
            raise PortFailed(f"the mock model server did not start: {words or 'it said nothing'}", hint="run: bash scripts/setup_agents.sh")
        time.sleep(LOOK_SECONDS)
