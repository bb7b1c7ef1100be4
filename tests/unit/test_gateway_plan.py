"""When an orchestra has a gateway, what that is told, and what is kept from agents that go through it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from orchestra.agents.access import Access
from orchestra.agents.registry import adapter_for
from orchestra.bootstrap.gateways import Plan, plan_gateway
from orchestra.bootstrap.wiring import exposed_ports, variables_passed
from orchestra.core.model import AgentSpec, Payload, TaskSpec
from orchestra.engine.orders import OrderMaker, OrderOptions
from orchestra.errors import SettingsInvalid
from orchestra.ids import AgentId, AttemptId, NodeId, TaskId
from orchestra.node import AttemptOrder
from orchestra.root import Root
from orchestra.settings import load
from orchestra.workspace import Workspace

KEYS = {"ANTHROPIC_API_KEY": "a", "OPENAI_API_KEY": "b"}
ACCESS = Access("http://127.0.0.1:9", "orc-token", ("anthropic", "openai"))


def planned(settings: dict[str, Any] | None = None, environ: dict[str, str] | None = None, root: str = "/r") -> Plan | None:
    text = json.dumps({"orchestra": settings or {}})
    return plan_gateway(load(text, "o.json", {}, {}), Root(Path(root)), KEYS if environ is None else environ)


def upstreams(plan: Plan | None) -> dict[str, Any]:
    assert plan is not None
    assert plan.text is not None
    found: dict[str, Any] = plan.text["upstreams"]
    return found


def order(kind: str, env: dict[str, str] | None = None, **kinds: dict[str, str]) -> dict[str, Any]:
    spec = TaskSpec(TaskId("p/a"), "", Payload("analysis", "x"), kind=kind, env=env or {})
    maker = OrderMaker(adapter_for, OrderOptions(kinds=kinds))
    return maker.make(spec, AttemptId(spec.id, 1), AgentSpec(AgentId(1), NodeId("local")), access=ACCESS).spec


def test_there_is_none_without_a_key_or_where_it_is_off() -> None:
    assert planned(environ={}) is None
    assert planned(environ={"CLAUDE_CODE_OAUTH_TOKEN": "login of a subscription"}) is None
    assert planned({"gateway": {"mode": "off"}}) is None


def test_asked_for_without_a_key_says_what_is_missing() -> None:
    with pytest.raises(SettingsInvalid, match="ANTHROPIC_API_KEY"):
        planned({"gateway": {"mode": "on"}}, {})


def test_it_goes_where_the_agents_would_have_gone() -> None:
    kinds = {"codex": {"base_url": "http://127.0.0.1:5/v1"}}
    found = upstreams(planned({"kinds": kinds}, KEYS | {"ANTHROPIC_BASE_URL": "https://proxy.example/x/"}))
    assert found["anthropic"]["base_url"] == "https://proxy.example/x"
    assert found["openai"]["base_url"] == "http://127.0.0.1:5"
    assert "gemini" not in found


def test_a_kind_that_is_sent_elsewhere_goes_there() -> None:
    plan = planned({"kinds": {"claude": {"base_url": "http://127.0.0.1:5"}, "aider": {"base_url": "http://127.0.0.1:6/v1"}}})
    assert plan is not None
    assert plan.options.kinds["claude"] == ("anthropic",)
    assert "aider" not in plan.options.kinds
    assert plan.options.kinds["codex"] == ("openai",)
    assert "shell" not in plan.options.kinds


def test_limits_budgets_and_retries_come_from_the_settings() -> None:
    plan = planned(
        {
            "api": {"rate_limits": {"rpm": 7, "tpm": 8}, "retry": {"max_attempts": 2, "backoff_multiplier": 3}},
            "cost": {"daily_budget_usd": 9.5, "task_budget_usd": 2},
        }
    )
    found = upstreams(plan)
    assert plan is not None
    assert plan.text is not None
    assert found["anthropic"]["accounts"]["main"]["limits"] == {"default": {"requests": 7, "input_tokens": 8}}
    assert found["openai"]["accounts"]["main"]["limits"] == {"default": {"requests": 7, "tokens": 8}}
    assert plan.text["retry"] == {"tries": 2, "multiplier": 3.0}
    assert plan.day_usd == 9.5
    assert plan.options.task_budget_usd_micros == 2_000_000


def test_the_key_itself_is_in_no_file() -> None:
    plan = planned(environ={"ANTHROPIC_API_KEY": "sk-very-secret"})
    assert plan is not None
    assert "sk-very-secret" not in json.dumps(plan.text)


def test_keys_of_served_apis_do_not_reach_the_windows() -> None:
    settings = load(json.dumps({"orchestra": {"kinds": {"codex": {"api_key_variable": "MY_KEY"}}}}), "o.json", {}, {})
    assert {"ANTHROPIC_API_KEY", "OPENAI_API_KEY", "MY_KEY"} <= set(variables_passed(settings))
    left = variables_passed(settings, ("anthropic", "openai"))
    assert not {"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "OPENAI_API_KEY", "CODEX_API_KEY", "MY_KEY"} & set(left)
    assert "GEMINI_API_KEY" in left


@pytest.mark.parametrize("kind", ["claude", "codex", "opencode", "aider", "mini-swe-agent"])
def test_an_attempt_gets_the_token_and_no_key(kind: str) -> None:
    made = order(kind, {"ANTHROPIC_API_KEY": "sk-own", "OPENAI_BASE_URL": "https://elsewhere"})
    assert made["env"]["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:9"
    assert made["env"]["OPENAI_BASE_URL"] == "http://127.0.0.1:9/v1"
    assert made["env"]["ANTHROPIC_API_KEY"] == made["env"]["OPENAI_API_KEY"] == "orc-token"
    assert not {"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN", "OPENAI_API_KEY", "CODEX_API_KEY"} & set(
        made["env_pass"]
    )


def test_checks_that_run_again_get_neither_a_pass_nor_a_key() -> None:
    spec = TaskSpec(TaskId("p/a"), "", Payload("analysis", "x"), kind="claude", env={"ANTHROPIC_API_KEY": "sk-own", "OWN": "stays"})
    attempt, slot = AttemptId(spec.id, 1), AgentSpec(AgentId(1), NodeId("local"))
    place = Workspace(attempt=attempt, kind="git", repo="/r", path="/w", cwd="/w/sub")
    keys = {"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"}
    behind = OrderMaker(adapter_for, OrderOptions(gateway_kinds={"claude": ("anthropic",)}))
    made = behind.make_checks(spec, attempt, slot, remote=False, place=place).spec
    assert not keys & {*made["env_pass"], *made["env"]}
    assert (made["env"]["OWN"], made["cwd"]) == ("stays", "/w/sub")
    without = OrderMaker(adapter_for, OrderOptions()).make_checks(spec, attempt, slot, remote=False, place=place).spec
    assert without["env"]["ANTHROPIC_API_KEY"] == "sk-own", "as the attempt had it"


def test_clis_leave_waiting_and_trying_to_the_gateway() -> None:
    assert order("claude")["env"]["CLAUDE_CODE_MAX_RETRIES"] == "2"
    assert order("claude", claude={"max_retries": "7"})["env"]["CLAUDE_CODE_MAX_RETRIES"] == "7"
    spec = TaskSpec(TaskId("p/a"), "", Payload("analysis", "x"), kind="codex")
    maker = OrderMaker(adapter_for, OrderOptions(kinds={"codex": {"base_url": "https://elsewhere/v1", "api_key_variable": "MY_KEY"}}))
    made = maker.make(spec, AttemptId(spec.id, 1), AgentSpec(AgentId(1), NodeId("local")), access=ACCESS)
    config = made.agent_files["codex/config.toml"]
    assert 'base_url = "http://127.0.0.1:9/v1"' in config
    assert 'env_key = "OPENAI_API_KEY"' in config
    assert "request_max_retries = 2" in config
    assert "MY_KEY" not in made.spec["env_pass"]


def test_a_node_reaches_the_gateway_at_ports_that_stay() -> None:
    ports = exposed_ports("0123456789ab", NodeId("alpha"))
    assert ports == exposed_ports("0123456789ab", NodeId("alpha"))
    assert ports != exposed_ports("0123456789ab", NodeId("beta"))
    assert len(set(ports)) == 3
    assert all(20_000 <= port < 32_000 for port in ports)


LOGINS = Access("http://127.0.0.1:9", "orc-token", ("anthropic", "openai"), {"anthropic": "", "openai": "/sub"})


def passed(kind: str, access: Access, env: dict[str, str] | None = None) -> AttemptOrder:
    spec = TaskSpec(TaskId("p/a"), "", Payload("analysis", "x"), kind=kind, env=env or {})
    return OrderMaker(adapter_for, OrderOptions()).make(spec, AttemptId(spec.id, 1), AgentSpec(AgentId(1), NodeId("local")), access=access)


def test_an_agent_keeps_the_login_that_the_gateway_passes_on_and_shows_its_token_beside_it() -> None:
    made = passed("claude", LOGINS, {"ANTHROPIC_CUSTOM_HEADERS": "x-team: blue"}).spec
    assert {"ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"} <= set(made["env_pass"])
    assert "ANTHROPIC_API_KEY" not in made["env"]
    assert made["env"]["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:9"
    assert made["env"]["ANTHROPIC_CUSTOM_HEADERS"] == "x-team: blue\nx-orchestra-token: orc-token"


def test_a_login_of_one_api_is_kept_and_a_key_of_another_is_not() -> None:
    access = Access("http://127.0.0.1:9", "orc-token", ("anthropic", "openai"), {"anthropic": ""})
    made = passed("opencode", access).spec
    assert "ANTHROPIC_API_KEY" in made["env_pass"]
    assert "OPENAI_API_KEY" not in made["env_pass"]
    assert made["env"]["OPENAI_API_KEY"] == made["env"]["ORCHESTRA_GATEWAY_TOKEN"] == "orc-token"
    config = json.loads(passed("opencode", access).agent_files["opencode/config/opencode/opencode.json"])["provider"]
    assert config["anthropic"]["options"]["headers"] == {"x-orchestra-token": "{env:ORCHESTRA_GATEWAY_TOKEN}"}
    assert "headers" not in config["openai"]["options"]


def test_codex_goes_to_a_subscription_without_a_key_and_to_an_api_with_its_own() -> None:
    def provider(access: Access) -> dict[str, Any]:
        found: dict[str, Any] = tomllib.loads(passed("codex", access).agent_files["codex/config.toml"])["model_providers"]["orchestra"]
        return found

    subscribed = provider(LOGINS)
    assert (subscribed["name"], subscribed["base_url"], subscribed["requires_openai_auth"]) == ("OpenAI", "http://127.0.0.1:9/sub", True)
    assert "env_key" not in subscribed
    keyed = provider(Access("http://127.0.0.1:9", "orc-token", ("openai",), {"openai": ""}))
    assert (keyed["base_url"], keyed["env_key"]) == ("http://127.0.0.1:9/v1", "OPENAI_API_KEY")
    assert subscribed["env_http_headers"] == keyed["env_http_headers"] == {"x-orchestra-token": "ORCHESTRA_GATEWAY_TOKEN"}


def test_logins_are_passed_on_where_the_upstream_that_serves_an_api_says_so(tmp_path: Path) -> None:
    file = tmp_path / "gateway.json"
    upstreams = {
        "sub": {"kind": "openai", "base_url": "https://chatgpt.example/backend-api/codex", "pass_through": True},
        "key": {"kind": "openai", "base_url": "https://api.example", "accounts": {"main": {"keys": [{"env": "KEY"}]}}},
        "held": {"kind": "anthropic", "base_url": "https://api.example", "accounts": {"main": {"keys": [{"env": "KEY"}]}}},
        "late": {"kind": "anthropic", "base_url": "https://api.example", "pass_through": True},
    }
    file.write_text(json.dumps({"upstreams": upstreams}))
    plan = planned({"gateway": {"file": str(file)}}, {})
    assert plan is not None
    assert plan.logins == {"openai": "/sub"}
    assert plan.held == ("anthropic",)
    names = variables_passed(load(None, "", {}, {}), plan.held)
    assert "CODEX_ACCESS_TOKEN" in names
    assert "CLAUDE_CODE_OAUTH_TOKEN" not in names
