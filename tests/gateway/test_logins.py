"""Subscription logins behind the orchestra's own gateway: agents keep theirs, the token comes in a header of its own, and a login that is used up waits.

The first tests run Claude Code and Codex as they are, in a network namespace that holds nothing but loopback; the logins are of nobody.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from orchestra.intake.request import StatusParams
from orchestra.testing.hosted import hosted, wait_until
from orchestra.testing.upstream import JSON_TYPE, Answer, Seen, Upstream
from orchestra.usecases import TaskParams
from tests.gateway.namespace import PROGRAMS, namespace, program
from tests.gateway.support import CLOCK
from tests.gateway.test_agents import is_turn, subscription, text
from tests.gateway.test_in_orchestra import ASK, ask, fake_api, plan, prepare, reply, waiting

ORCHESTRA = Path(sys.executable).with_name("orchestra")
LOGIN = "sk-ant-oat01-of-nobody"
SUBSCRIPTION = "/backend-api/codex"
WORK = """\
name: work
agents: [{count: 1, kind: claude}, {count: 1, kind: codex}]
defaults: {isolation: worktree, retries: 0}
tasks:
  - {id: claude, agent: claude, prompt: Say it}
  - {id: codex, agent: codex, prompt: Say it}
"""


async def orchestra(enter: list[str], repo: Path, env: dict[str, str], *args: str) -> tuple[int, str]:
    argv = [*enter, str(ORCHESTRA), *args]
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=repo, env=env, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, output.decode()


def desk(folder: Path, url: str) -> tuple[Path, dict[str, str]]:
    """A repository whose orchestra passes logins on to a provider; Codex's login is in the folder of its agent, Claude Code's in the environment."""
    repo, home = folder / "repo", folder / "home"
    root = repo / ".codex"
    (root / "config").mkdir(parents=True)
    home.mkdir()
    upstreams = {
        "claude": {"kind": "anthropic", "base_url": url, "pass_through": True},
        "codex": {"kind": "openai", "base_url": url + SUBSCRIPTION, "pass_through": True},
    }
    (folder / "gateway.json").write_text(json.dumps({"upstreams": upstreams}))
    kinds = {"claude": {"allow_root": True, "model": "claude-opus-4-5"}, "codex": {"model": "gpt-5.5"}}
    settings = {"gateway": {"file": str(folder / "gateway.json")}, "kinds": kinds}
    (root / "config" / "orchestra.yaml").write_text(json.dumps({"orchestra": settings}))
    own = root / "nodes" / "local" / "homes" / "2" / "codex"
    own.mkdir(parents=True, mode=0o700)
    (own / "auth.json").write_text(json.dumps(subscription()))
    (repo / "plan.yaml").write_text(WORK)
    path = f"{PROGRAMS}:{Path(program('node')).resolve().parent}:/usr/bin:/bin:/usr/sbin:/sbin"
    env = {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "TERM": "xterm-256color", "TMPDIR": "/tmp"}
    return repo, env | {"CLAUDE_CODE_OAUTH_TOKEN": LOGIN}


@pytest.mark.xdist_group("agents")
@pytest.mark.timeout(180)
@pytest.mark.parametrize("mode", ["headless", "interactive"])
async def test_the_provider_sees_the_agents_own_login_and_the_gateway_counts_the_attempt(tmp_path: Path, mode: str) -> None:
    def script(seen: Seen, number: int) -> Answer:
        if not is_turn(seen):
            return Answer(headers=(JSON_TYPE,), body=b'{"data":[],"models":[]}')
        return text("codex" if seen.target.startswith(SUBSCRIPTION) else "claude")

    upstream = Upstream(script, CLOCK)
    with namespace() as net:
        repo, env = desk(tmp_path, await upstream.start(net.listener()))
        try:
            for arguments in (
                ["init", "-q", "-b", "main"],
                ["-c", "user.name=u", "-c", "user.email=u@x", "commit", "-q", "--allow-empty", "-m", "b"],
            ):
                git = await asyncio.create_subprocess_exec("git", *arguments, cwd=repo, env=env)
                assert await git.wait() == 0
            modes = [part for kind in ("claude", "codex") for part in ("--set", f"kinds.{kind}.mode={mode}")]
            status, output = await orchestra(net.enter, repo, env, "run", "plan.yaml", *modes)
            assert status == 0, output
        finally:
            await upstream.stop()
        turns = [seen for seen in upstream.seen if is_turn(seen)]
        shown = {seen.target.partition("?")[0]: seen.header("authorization") for seen in turns}
        assert shown.keys() == {"/v1/messages", f"{SUBSCRIPTION}/responses"}
        assert shown["/v1/messages"] == f"Bearer {LOGIN}"
        assert shown[f"{SUBSCRIPTION}/responses"] == f"Bearer {subscription_token(repo)}"
        assert "orc-" not in str(upstream.seen)
        assert not any(seen.header("x-orchestra-token") for seen in upstream.seen)
        _, report = await orchestra(net.enter, repo, env, "cost", "report", "--by", "attempt", "--json")
        rows = {row["name"]: row["requests"] for row in json.loads(report)["rows"]}
        assert rows.keys() == {"work/claude#1", "work/codex#1"}
        assert sum(rows.values()) == len(turns)


def subscription_token(repo: Path) -> str:
    path = repo / ".codex" / "nodes" / "local" / "homes" / "2" / "codex" / "auth.json"
    return str(json.loads(path.read_text())["tokens"]["access_token"])


PASSING = ASK.replace(
    '"x-api-key": os.environ["ANTHROPIC_API_KEY"]',
    '"authorization": "Bearer " + os.environ["CLAUDE_CODE_OAUTH_TOKEN"], "x-orchestra-token": os.environ["ORCHESTRA_GATEWAY_TOKEN"]',
)
SPENT = (("anthropic-ratelimit-unified-5h-status", "rejected"), ("retry-after", "3600"))


def passing(folder: Path, url: str) -> Path:
    root = prepare(folder, url, upstreams={"api": {"kind": "anthropic", "base_url": url, "pass_through": True}})
    (folder / "ask.py").write_text(PASSING)
    path = root / "config" / "orchestra.yaml"
    settings = json.loads(path.read_text())
    settings["orchestra"]["kinds"]["asker"]["env_pass"] = "CLAUDE_CODE_OAUTH_TOKEN,PATH"
    path.write_text(json.dumps(settings))
    return root


async def test_nothing_is_started_for_a_login_whose_window_is_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", LOGIN)
    spent = [True]

    def script(seen: Seen, number: int) -> Answer:
        return Answer(status=429, headers=(JSON_TYPE, *SPENT), body=b"{}") if spent[0] else reply()

    async with fake_api(script) as (api, url):
        root = passing(tmp_path, url)
        async with hosted(root, agents=1) as stage:
            await stage.submit(plan("p", "a", retries=0), tmp_path / "work")
            await stage.wait(waiting("p/a"))

            async def closed() -> bool:
                return any("is used up" in each for each in (await stage.app.status(StatusParams())).warnings)

            await wait_until(closed)
            accounts = (await ask(root, "health"))["accounts"]
            assert [name.partition("-")[0] for name in accounts] == ["api.login"]
            assert all(each["parked_ms"] > 3_500_000 for each in accounts.values())

            async def explained() -> bool:  # once its pause is over
                return "is used up" in (await stage.app.explain(TaskParams("p/a"))).explanation

            await wait_until(explained)
            assert {seen.header("authorization") for seen in api.seen} == {f"Bearer {LOGIN}"}
            assert len(api.seen) == 1, "it was asked once, and is not asked again"
