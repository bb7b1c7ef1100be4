"""Settings: which source holds, what is refused and how it is told, and that secrets stay unseen."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra import settings as s
from orchestra.errors import SettingsInvalid
from orchestra.settings_schema import Node, Section

PUBLISHED = """\
orchestra:
  name: "miyabi-orchestra"
  version: "2.0.0"
  nodes:
    mugen: {host: "mugen", ssh_user: "ubuntu", max_agents: 100}
    majin: {host: "majin", ssh_user: "ubuntu", max_agents: 100}
  api:
    provider: "anthropic"
    rate_limits: {rpm: 1000, tpm: 60000}
    retry: {max_attempts: 5, backoff_multiplier: 2}
  monitoring: {health_check_interval: 60, state_snapshot_interval: 300}
  recovery: {auto_recovery_enabled: true, max_recovery_attempts: 3, escalation_threshold: 3}
  cost: {tracking_enabled: true, daily_budget_usd: 100, task_budget_usd: 10}
"""


def refusal(text: str | None = None, environ: dict[str, str] | None = None, flags: dict[str, str] | None = None) -> SettingsInvalid:
    with pytest.raises(SettingsInvalid) as caught:
        s.load(text, "o.yaml", environ or {}, flags or {})
    return caught.value


@pytest.mark.parametrize("text", [None, "", "# nothing\n", "orchestra:\n", "orchestra:\n  tasks:\n"])
def test_nothing_said_is_the_defaults(text: str | None) -> None:
    loaded = s.load(text, "o.yaml", {}, {})
    assert loaded == s.Settings()
    assert loaded.origin("tasks.retries") == "default"
    assert (loaded.tasks.retries, loaded.tasks.grace_seconds, loaded.limits.request_bytes) == (3, 5.0, 1_048_576)


def test_the_published_file_is_read_field_for_field() -> None:
    loaded = s.load(PUBLISHED, "o.yaml", {}, {})
    assert loaded.nodes["majin"] == Node(host="majin", ssh_user="ubuntu", max_agents=100)
    assert loaded.api.retry.backoff_multiplier == 2
    assert loaded.origin("api.rate_limits.rpm") == "o.yaml:9"


def test_each_source_goes_before_the_one_below() -> None:
    text = "orchestra:\n  tasks:\n    retries: 1\n    timeout_seconds: 10\n    grace_seconds: 1"
    environ = {"ORCHESTRA_TASKS_RETRIES": "2", "ORCHESTRA_TASKS_TIMEOUT_SECONDS": "20", "ORCHESTRA_ROOT": "/x", "HOME": "/"}
    loaded = s.load(text, "o.yaml", environ, {"tasks.retries": "3"})
    assert (loaded.tasks.retries, loaded.tasks.timeout_seconds, loaded.tasks.grace_seconds) == (3, 20.0, 1.0)
    assert [loaded.origin(f"tasks.{name}") for name in ("retries", "timeout_seconds", "grace_seconds", "retry_backoff_seconds")] == [
        "flag",
        "env ORCHESTRA_TASKS_TIMEOUT_SECONDS",
        "o.yaml:5",
        "default",
    ]


def test_a_node_may_be_named_alone_and_set_by_flag() -> None:
    loaded = s.load("orchestra:\n  nodes:\n    here:\n", "o.yaml", {}, {"nodes.far.host": "far.example"})
    assert (loaded.nodes["here"].host, loaded.nodes["far"].host) == ("", "far.example")


@pytest.mark.parametrize(
    "text,field,message,hint",
    [
        ("orchestra:\n  tasks:\n    retrys: 1", "tasks.retrys", "o.yaml:3:5: there is no field 'retrys'", "did you mean 'retries'?"),
        ("orchestra:\n  task: {}", "task", "o.yaml:2:3: there is no field 'task'", "did you mean 'tasks'?"),
        ("tasks: {}", "tasks", "o.yaml:1:1: there is no field 'tasks'", "indent it under orchestra:"),
        ("orchestar: {}", "orchestar", "o.yaml:1:1:", "did you mean 'orchestra'?"),
        (
            "orchestra: {tasks: {retries: 101}}",
            "tasks.retries",
            "o.yaml:1:21: expected a whole number from 0 to 100, found the number 101",
            "",
        ),
        (
            "orchestra: {tasks: {retries: many}}",
            "tasks.retries",
            "o.yaml:1:21: expected a whole number from 0 to 100, found the text 'many'",
            "",
        ),
        (
            "orchestra: {recovery: {auto_recovery_enabled: yes}}",
            "recovery.auto_recovery_enabled",
            "o.yaml:1:24: expected true or false",
            "",
        ),
        ("orchestra: {nodes: {-rf: {}}}", "nodes.-rf", "o.yaml:1:21: the name is not usable", ""),
        ("orchestra: {nodes: {a: {host: -oProxyCommand=x}}}", "nodes.a.host", "o.yaml:1:25: expected a host name", ""),
        ("orchestra: 3", "orchestra", "o.yaml:1:1: expected a mapping", ""),
        ("[1]", "", "o.yaml:1:1: expected a mapping", "its top key is orchestra:"),
        ("orchestra: {a: 1, a: 2}", "", "o.yaml:1:19: the key 'a' is given twice", "it stands in line 1 already"),
    ],
)
def test_what_a_file_may_not_say(text: str, field: str, message: str, hint: str) -> None:
    error = refusal(text)
    assert error.field == field
    assert error.message.startswith(message)
    assert error.hint == hint


@pytest.mark.parametrize(
    "environ,flags,field,message",
    [
        ({"ORCHESTRA_TASKS_RETRIES": "x"}, {}, "tasks.retries", "env ORCHESTRA_TASKS_RETRIES: expected a whole number, found the text 'x'"),
        ({"ORCHESTRA_TASKS_RETRIES": "1000"}, {}, "tasks.retries", "env ORCHESTRA_TASKS_RETRIES: expected a whole number from 0 to 100"),
        ({"ORCHESTRA_TASKS_RETRYS": "1"}, {}, "ORCHESTRA_TASKS_RETRYS", "env ORCHESTRA_TASKS_RETRYS: there is no such setting"),
        (
            {"ORCHESTRA_COST_TRACKING_ENABLED": "maybe"},
            {},
            "cost.tracking_enabled",
            "env ORCHESTRA_COST_TRACKING_ENABLED: expected true or false",
        ),
        ({"ORCHESTRA_NODES_A_HOST": "x"}, {}, "ORCHESTRA_NODES_A_HOST", "env ORCHESTRA_NODES_A_HOST: there is no such setting"),
        ({"ORCHESTRA_HEARTBEAT_SECONDS": "nan"}, {}, "heartbeat_seconds", "env ORCHESTRA_HEARTBEAT_SECONDS: expected a number"),
        ({"ORCHESTRA_NAME": "\udc80"}, {}, "name", "env ORCHESTRA_NAME: expected text"),
        ({}, {"tasks.retry": "1"}, "tasks.retry", "flag: there is no setting 'tasks.retry'"),
        ({}, {"tasks.retries": "-1"}, "tasks.retries", "flag: expected a whole number from 0 to 100"),
    ],
)
def test_what_variables_and_flags_may_not_say(environ: dict[str, str], flags: dict[str, str], field: str, message: str) -> None:
    error = refusal(None, environ, flags)
    assert error.field == field
    assert error.message.startswith(message)


def test_every_setting_has_a_reason_and_a_variable() -> None:
    shown = s.rows(s.load(PUBLISHED, "o.yaml", {}, {}))
    assert [row.path for row in shown if len(row.description) < 10] == []
    assert len({row.path for row in shown}) == len(shown) > 40
    fixed = [row for row in shown if not row.path.startswith("nodes.")]
    environ = {"ORCHESTRA_" + row.path.replace(".", "_").upper(): row.value for row in fixed}
    again = s.load(PUBLISHED, "o.yaml", environ, {})
    assert [(row.path, row.value) for row in s.rows(again)] == [(row.path, row.value) for row in shown]
    assert {row.origin.partition(" ")[0] for row in s.rows(again) if not row.path.startswith("nodes.")} == {"env"}


def test_secrets_are_masked() -> None:
    class Keys(Section, frozen=True, kw_only=True):
        api_key: str = "hidden"
        webhook_token: str = "hidden"
        sshPassword: str = "hidden"  # noqa: N815
        client_secret_file: str = "hidden"
        tokens_max: int = 7
        monkey_business: str = "seen"

    shown = repr(Keys())
    assert "hidden" not in shown
    assert "tokens_max=7" in shown
    assert "seen" in shown
    assert [row.value for row in s._rows(Keys(), (), s.Settings())] == ["********"] * 4 + ["7", "seen"]


def test_a_secret_in_the_wrong_place_is_not_repeated() -> None:
    assert "sk-123" not in str(refusal("orchestra: {api: {api_key: sk-123}}"))


@given(
    st.text(max_size=80) | st.builds("orchestra: {}".format, st.text(alphabet="{}[]a: 1,tasks\n", max_size=30)),
    st.dictionaries(
        st.sampled_from(["ORCHESTRA_TASKS_RETRIES", "ORCHESTRA_NAME", "ORCHESTRA_API_X", "ORCHESTRA_MARKER_PREFIX"]), st.text(max_size=9)
    ),
    st.dictionaries(
        st.sampled_from(["tasks.retries", "nodes.x.host", "nodes..host", "agents.kind"]) | st.text(max_size=9), st.text(max_size=9)
    ),
)
def test_nothing_but_settings_invalid_escapes(text: str, environ: dict[str, str], flags: dict[str, str]) -> None:
    with suppress(SettingsInvalid):
        assert s.rows(s.load(text, "o.yaml", environ, flags))
