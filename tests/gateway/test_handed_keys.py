"""A key that came in the environment: from `orchestra run` or `orchestra up` to the gateway, and to every gateway after it, past everybody else's eyes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from orchestra.errors import PortFailed
from orchestra.gateway.admin import ask_admin
from orchestra.secrets import handed
from orchestra.testing.hosted import is_gone, processes_of, wait_until
from orchestra.testing.upstream import Answer, Seen
from tests.e2e.command import shell
from tests.gateway.support import CANARY
from tests.gateway.test_in_orchestra import fake_api, files_with, holders, plan, prepare, reply

KEY = "ANTHROPIC_API_KEY"


def prepare_without_file(folder: Path) -> None:
    """An orchestra with no word about a gateway: it comes by itself, for the key in the environment."""
    path = prepare(folder, "http://127.0.0.1:1") / "config" / "orchestra.yaml"
    settings = json.loads(path.read_text())
    del settings["orchestra"]["gateway"]
    path.write_text(json.dumps(settings))
    (folder / "key").unlink()
    (folder / "plan.json").write_text(plan("p", "a"))


async def gateway_pid(root: Path) -> int:
    while True:
        try:
            return int((await ask_admin(root / "gateway" / "books" / "admin.sock", "health"))["pid"])
        except PortFailed:
            await asyncio.sleep(0.02)


def coordinators(root: Path) -> list[int]:
    return [pid for pid, command in processes_of(root).items() if " coordinator" in command and "--supervise" not in command]


@pytest.mark.parametrize("way", ["run", "up"])
async def test_a_key_from_the_environment_is_seen_in_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Not in the gateway's either, which got it by a pipe. A gateway and a coordinator that are killed come back with it."""
    letting_go = asyncio.Event()

    async def script(seen: Seen, number: int) -> Answer:
        await letting_go.wait()
        return reply()

    async with fake_api(script) as (api, url):
        with shell(tmp_path) as command:
            prepare_without_file(tmp_path)
            monkeypatch.setenv(KEY, CANARY)
            monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
            running = command.start("run", "plan.json") if way == "run" else None
            if running is None:
                for arguments in (("up", "--agents", "1"), ("task", "submit", "Count the lines", "--prompt", "do it", "--agent", "asker")):
                    done = await asyncio.to_thread(command.run, *arguments)
                    assert done.returncode == 0, done.stderr
            await wait_until(lambda: bool(api.seen))
            assert holders(CANARY) == []

            first = await gateway_pid(command.root)
            asked = len(api.seen)
            for pid in [first, *coordinators(command.root)]:
                os.kill(pid, signal.SIGKILL)
            await wait_until(lambda: is_gone(first))
            await wait_until(lambda: len(api.seen) > asked)
            assert holders(CANARY) == []
            assert {seen.header("x-api-key") for seen in api.seen} == {CANARY}
            assert await gateway_pid(command.root) != first
            letting_go.set()
            if running is not None:
                out, err = await asyncio.to_thread(running.communicate)
                assert running.returncode == 0, out + err
            assert not files_with(CANARY, tmp_path)


def test_what_was_taken_is_gone_from_the_environment_and_still_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handed, "_held", {})
    monkeypatch.setenv(KEY, CANARY)
    assert handed.take([KEY, "ORCHESTRA_NOT_THERE"]) == {KEY: CANARY}
    assert KEY not in os.environ
    assert handed.environment()[KEY] == CANARY
    assert handed.take([]) == {KEY: CANARY}


def test_keys_are_offered_once_and_only_while_somebody_holds_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "keys"
    monkeypatch.setattr(handed, "_held", {})
    with handed.offered(place, {KEY: CANARY}):
        assert place.stat().st_mode & 0o777 == 0o600
        handed.accept(place)
        assert handed.environment()[KEY] == CANARY
        assert not place.exists()
    with pytest.raises(PortFailed, match="nobody offers keys"):
        handed.accept(place)
    os.mkfifo(place)
    with pytest.raises(PortFailed, match="did not arrive"):
        handed.accept(place)
    with pytest.raises(PortFailed, match=r"gateway\.file"), handed.pipe_with({KEY: "x" * 70_000}):
        pass
