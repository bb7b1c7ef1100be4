"""Keys: where they come from, that they change under load, and that nobody else ever has them."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
from pathlib import Path

import pytest

from orchestra.errors import BadInput, SettingsInvalid
from orchestra.secret import MASK, Secret
from orchestra.secrets import places
from orchestra.secrets.places import CommandSecret, EnvironmentSecret, FileSecret
from orchestra.testing.upstream import Answer, Seen, anthropic_json, refusal
from tests.gateway.support import CANARY, staged


def put(path: Path, text: str, mode: int = 0o600) -> Path:
    """Replaces a file whole, as whoever rotates keys should."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(mode)
    fresh.replace(path)
    return path


async def test_places(tmp_path: Path) -> None:
    assert (await EnvironmentSecret("K", {"K": " sk-1\n"}).read()).reveal() == "sk-1"
    assert (await FileSecret(put(tmp_path / "key", "sk-2\n")).read()).reveal() == "sk-2"
    assert (await CommandSecret(("printf", "sk-3")).read()).reveal() == "sk-3"
    in_pieces = "printf sk-; for each in 1 2 3 4 5; do /bin/true; done; printf 4"
    assert (await CommandSecret(("/bin/sh", "-c", in_pieces)).read()).reveal() == "sk-4", "however many pieces it comes in"


async def test_a_program_that_leaves_something_running_has_told_its_key(tmp_path: Path) -> None:
    """As one does that starts an agent for passphrases; that has the program's output, and keeps it open."""
    started = tmp_path / "pid"
    try:
        stays = f"sleep 600 & echo $! > {started}; printf sk-5"
        assert (await CommandSecret(("/bin/sh", "-c", stays)).read()).reveal() == "sk-5"
    finally:
        os.kill(int(started.read_text()), signal.SIGKILL)


async def test_a_program_that_tells_no_key_is_given_up_though_what_it_started_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "COMMAND_TIMEOUT_S", 0.3)
    started = tmp_path / "pid"
    try:
        with pytest.raises(SettingsInvalid, match="gave no key"):
            await CommandSecret(("/bin/sh", "-c", f"sleep 600 & echo $! > {started}; wait")).read()
    finally:
        os.kill(int(started.read_text()), signal.SIGKILL)


async def test_places_that_are_not_safe_or_hold_no_key(tmp_path: Path) -> None:
    put(tmp_path / "open", CANARY, 0o644)
    for source in (
        EnvironmentSecret("MISSING", {}),
        EnvironmentSecret("K", {"K": f"{CANARY}\r\nX-Injected: 1"}),
        FileSecret(tmp_path / "open"),
        FileSecret(tmp_path / "missing"),
        FileSecret(tmp_path),
        CommandSecret(("false",)),
        CommandSecret(("/no/such/program",)),
    ):
        with pytest.raises(SettingsInvalid) as refused:
            await source.read()
        assert refused.value.hint
        assert CANARY not in str(refused.value)


def test_a_secret_does_not_show_itself() -> None:
    secret = Secret(CANARY)
    assert (repr(secret), str(secret), f"{secret}") == (MASK, MASK, MASK)
    with pytest.raises(TypeError):
        pickle.dumps(secret)


async def test_keys_change_under_load_and_no_request_is_lost(tmp_path: Path) -> None:
    """The provider stops taking the old key at the moment the new one is there; twenty agents never stop asking."""
    key = put(tmp_path / "key", "sk-number-0")
    accepted = {"sk-number-0"}

    def script(seen: Seen, n: int) -> Answer:
        known = seen.header("x-api-key") in accepted
        return anthropic_json(1, 1) if known else refusal(401, "authentication_error")

    upstream = {"accounts": {"main": {"keys": [{"file": "key"}]}}}
    async with staged(tmp_path, script, upstream=upstream, bounds={"agent_in_flight": 100}) as stage:
        going, statuses = True, []

        async def ask() -> None:
            while going:
                statuses.append((await stage.post())[0])

        asking = [asyncio.create_task(ask()) for _ in range(20)]
        for number in range(1, 6):
            before = len(statuses)
            await stage.until(lambda before=before: len(statuses) > before + 40)  # type: ignore[misc]
            put(key, f"sk-number-{number}")
            accepted.clear()
            accepted.add(f"sk-number-{number}")
            if number % 2:
                await stage.admin("reload")
        await stage.until(lambda: stage.upstream.seen[-1].header("x-api-key") == "sk-number-5")
        going = False
        await asyncio.gather(*asking)
        assert set(statuses) == {200}
        assert {f"sk-number-{number}" for number in range(6)} == {seen.header("x-api-key") for seen in stage.upstream.seen}
        assert "key_quarantined" not in await stage.kinds()


async def test_a_reload_that_cannot_hold_changes_nothing(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: anthropic_json(1, 1)) as stage:
        good = (tmp_path / "gateway.json").read_text()
        for bad, field in (
            (good.replace('"kind": "anthropic"', '"kind": "antropic"'), "upstreams.api.kind"),
            ("{", ""),
            (good.replace("KEY_A", "NONE"), "upstreams.api.accounts.main.keys"),
        ):
            (tmp_path / "gateway.json").write_text(bad)
            with pytest.raises(BadInput) as refused:
                await stage.admin("reload")
            assert not field or refused.value.field == field
            assert (await stage.post())[0] == 200


async def test_a_login_of_the_client_passes_through_and_is_counted(tmp_path: Path) -> None:
    upstream = {"accounts": {}, "pass_through": True}
    async with staged(tmp_path, lambda seen, n: anthropic_json(3, 4), upstream=upstream) as stage:
        status, _, _ = await stage.post(token="none", authorization="Bearer sk-own-login", x_orchestra_token=stage.token)
        assert status == 200
        (seen,) = stage.upstream.seen
        assert (seen.header("authorization"), seen.header("x-orchestra-token")) == ("Bearer sk-own-login", "")
        assert (await stage.totals("task", "task-1"))["requests"] == 1
        assert "sk-own-login" not in str(await stage.admin("limits"))
        assert (await stage.post(token="none", authorization="Bearer sk-own-login"))[0] == 401, "who it is for has to be known"


async def test_a_refused_login_of_the_client_is_the_clients_matter(tmp_path: Path) -> None:
    answer = refusal(401, "authentication_error")
    upstream = {"accounts": {}, "pass_through": True, "anonymous": True}
    async with staged(tmp_path, lambda seen, n: answer, upstream=upstream) as stage:
        status, body, _ = await stage.post(token="none")
        assert (status, body, len(stage.upstream.seen)) == (401, answer.body, 1)


async def test_the_administration_is_for_its_owner_only(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: anthropic_json(1, 1)) as stage:
        path = stage.gateway.config.admin_socket
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        await stage.post()
        for method in ("usage", "limits", "budgets", "events", "health"):
            answer = str(await stage.admin(method))
            assert CANARY not in answer
            assert stage.token not in answer
        for name in os.listdir(path.parent):
            if name != "admin.sock":
                text = (path.parent / name).read_bytes()
                assert CANARY.encode() not in text
                assert stage.token.encode() not in text, "only its digest is kept"


async def test_an_upstream_that_is_taken_away_is_told_to_those_who_wait_for_it(tmp_path: Path) -> None:
    accounts = {"main": {"keys": [{"env": "KEY_A"}], "limits": {"default": {"requests": 1}}}}
    async with staged(tmp_path, lambda seen, n: refusal(500, "api_error"), upstream={"accounts": accounts}) as stage:
        waiting = asyncio.create_task(stage.post())
        await stage.until(lambda: len(stage.upstream.seen) == 1)
        text = (tmp_path / "gateway.json").read_text()
        (tmp_path / "gateway.json").write_text(text.replace('"api"', '"other"').replace('"requests": 1', '"requests": 1000'))
        await stage.admin("reload")
        status, _, headers = await waiting
        assert (status, headers["x-should-retry"]) == (500, "false"), "the provider's last words"
        assert (await stage.post(path="/api/v1/messages"))[0] == 404


async def test_a_task_that_is_tried_again_and_a_session_that_is_resumed_stay_on_their_account(tmp_path: Path) -> None:
    """There its prompts are cached; whoever is new goes where there is most room."""
    held, letting_go = asyncio.Event(), asyncio.Event()

    async def script(seen: Seen, n: int) -> Answer:
        if seen.header("x-held"):
            held.set()
            await letting_go.wait()
        return anthropic_json(1, 1)

    accounts = {"a": {"keys": [{"env": "KEY_A"}]}, "b": {"keys": [{"env": "KEY_B"}]}}
    async with staged(tmp_path, script, {"KEY_A": "sk-a", "KEY_B": "sk-b"}, upstream={"accounts": accounts}) as stage:

        async def ask(attempt: str, task: str, **headers: str) -> str:
            token = (await stage.admin("issue_token", attempt=attempt, task=task))["token"]
            assert (await stage.post(token=token, **headers))[0] == 200
            return stage.upstream.seen[-1].header("x-api-key")

        session = {"x_claude_code_session_id": "11111111-2222"}
        assert await ask("one#1", "one", **session) == "sk-a"
        busy = asyncio.create_task(ask("busy#1", "busy", x_held="1"))
        await held.wait()
        assert await ask("new#1", "new") == "sk-b", "the first account is busy"
        assert await ask("one#2", "one") == "sk-a", "the same task"
        assert await ask("two#1", "two", **session) == "sk-a", "a session of another task goes on in it"
        assert await ask("two#2", "two") == "sk-a"
        letting_go.set()
        await busy
