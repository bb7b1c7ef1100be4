"""Every command: help with an example, JSON equal to the views, the right question to the use cases, exit codes and the face of errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result

from orchestra.edges.cli.grammar import Command, Group, parse_agents
from orchestra.edges.cli.main import COMMANDS, cli
from orchestra.edges.cli.session import Session
from orchestra.errors import FACES, BadInput, CoordinatorUnreachable, NotFound, OrchestraError, SettingsInvalid
from orchestra.intake.request import ScaleParams, ShutdownParams, StatusParams, SubmitBatchParams, SubmitTaskParams
from orchestra.settings import Settings
from orchestra.testing.fake_usecases import (
    FakeWiring,
    make_agent,
    make_detail,
    make_node,
    make_status,
    make_task,
    make_watch,
)
from orchestra.usecases import (
    AgentParams,
    AgentsParams,
    AgentsReply,
    AttachReply,
    CancelReply,
    ExplainReply,
    LogLine,
    LogsReply,
    NodesReply,
    PlansReply,
    ReportReply,
    RetryReply,
    ScaleReply,
    ScreensReply,
    ShutdownReply,
    SubmitBatchReply,
    SubmitReply,
    TasksParams,
    TasksReply,
    TypeParams,
)
from orchestra.views import HealthCheck, HealthView, PlanLine, TaskCounts


async def no_pause(seconds: float) -> None:
    return None


def call(wiring: FakeWiring, *args: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cli, list(args), obj=Session(wiring, no_pause), input=stdin)


def plain(view: object) -> Any:
    return json.loads(msgspec.json.encode(view))


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from leaves(child, (*path, name))


LEAVES = list(leaves(cli))


# --- help ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path,command", LEAVES, ids=[" ".join(path) or "orchestra" for path, _ in LEAVES])
def test_every_help_has_a_sentence_and_an_example(path: tuple[str, ...], command: click.Command) -> None:
    result = call(FakeWiring(), *path, "--help")
    assert result.exit_code == 0
    assert isinstance(command, Command | Group)
    assert (command.help or "").strip()
    assert "Example:\n  " + command.example.splitlines()[0] in result.output
    for line in command.example.splitlines():
        assert line.startswith(" ".join(("orchestra", *path)))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_commands_says_what_the_command_says(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.get_short_help_str(200) in (COMMANDS[name].summary, COMMANDS[name].summary.rstrip("."))
    assert command.hidden == COMMANDS[name].hidden


def test_help_of_the_whole_lists_what_is_not_hidden() -> None:
    output = call(FakeWiring(), "--help").output
    listed = output.partition("Commands:")[2].partition("Example:")[0]
    assert [line.split()[0] for line in listed.splitlines() if line.strip()] == [n for n, entry in COMMANDS.items() if not entry.hidden]
    assert call(FakeWiring()).output == output


def test_help_starts_without_loading_the_house() -> None:
    probe = "import sys, orchestra.edges.cli.main as m; print(*[n for n in ('rich', 'msgspec', 'asyncio', 'orchestra.usecases') if n in sys.modules])"
    said = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert said.stdout.strip() == ""


def test_version() -> None:
    assert call(FakeWiring(), "--version").output.startswith("orchestra ")


# --- shared options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("--root", "/x", "--json", "status"),
        ("status", "--json", "--root", "/x"),
        ("--json", "status", "--root=/x"),
        ("--root", "/y", "status", "--root", "/x", "--json"),
    ],
)
def test_options_may_stand_before_and_after_the_command(args: tuple[str, ...]) -> None:
    wiring = FakeWiring()
    result = call(wiring, *args)
    assert json.loads(result.output) == plain(make_status())
    assert wiring.log == ["connect /x"]


def test_the_root_comes_from_the_environment_or_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORCHESTRA_ROOT", raising=False)
    assert Session().root == Path(".codex")
    monkeypatch.setenv("ORCHESTRA_ROOT", "/e")
    assert Session().root == Path("/e")


def test_quiet_says_nothing() -> None:
    result = call(FakeWiring(), "status", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


# --- JSON is the view ----------------------------------------------------------------------------------------------------

TASK = make_task("demo/a", "failed", reason="exit code 3")
HEALTH = HealthView("t", "healthy", (HealthCheck("one", True, "fine"),), (make_node(),), TaskCounts(0, 0, 1, 0), 1, 0, 9)

FAR = make_node(
    name="far", status="lost", agents_running=0, agents_total=3, cpu_percent=0.0, memory_percent=0.0, connected=False, reason="no route"
)

VIEWS: list[tuple[tuple[str, ...], str, Any]] = [
    (("status",), "status", make_status()),
    (("health",), "health", HEALTH),
    (("down", "--no-wait"), "shutdown", ShutdownReply("shutdown_initiated", 2, "t")),
    (("scale", "5"), "scale", ScaleReply("scaling", 2, 5, 1)),
    (("task", "submit", "Count all the lines", "--run", "wc"), "submit_task", SubmitReply("T", "queued", (1,), "t")),
    (("task", "list"), "tasks", TasksReply((TASK,), 1)),
    (("task", "show", "a"), "task", make_detail(TASK)),
    (("task", "logs", "a"), "logs", LogsReply("demo/a", 1, (LogLine(5, "out", "hello"),), 9, True)),
    (("task", "cancel", "demo/a"), "cancel", CancelReply("demo/a", "cancelled")),
    (("task", "explain", "demo/a"), "explain", ExplainReply("demo/a", "queued", "no agent is free")),
    (("task", "retry", "demo/a"), "retry", RetryReply("demo/a", "queued", ("demo/a",))),
    (("agent", "list"), "agents", AgentsReply((make_agent(),))),
    (("agent", "attach", "1"), "attach", AttachReply(("tmux", "attach"))),
    (("agent", "capture", "1"), "screens", ScreensReply({1: "$ "})),
    (("agent", "send", "1", "y"), "type_text", None),
    (("report",), "report", ReportReply("demo", "/h", "/m")),
]


@pytest.mark.parametrize("args,method,view", VIEWS, ids=[" ".join(args[:2]) for args, _, _ in VIEWS])
def test_json_is_the_view(args: tuple[str, ...], method: str, view: Any) -> None:
    wiring = FakeWiring()
    wiring.fake.on("watch", make_watch(1))
    if view is not None:
        wiring.fake.on(method, view)
    result = call(wiring, *args, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == ({"done": True} if view is None else plain(view))
    assert result.stderr == ""


@pytest.mark.parametrize("args,method,view", VIEWS, ids=[" ".join(args[:2]) for args, _, _ in VIEWS])
def test_people_read_words_without_colour_where_there_is_no_terminal(args: tuple[str, ...], method: str, view: Any) -> None:
    wiring = FakeWiring()
    wiring.fake.on("watch", make_watch(1)).on("nodes", NodesReply((make_node(),)))
    if view is not None:
        wiring.fake.on(method, view)
    result = call(wiring, *args)
    assert "\x1b" not in result.output
    assert result.exit_code == (2 if args[:2] == ("agent", "attach") else 0)
    assert result.output.strip()
    assert "{" not in result.stdout


def test_agent_show_is_one_agent() -> None:
    wiring = FakeWiring()
    wiring.fake.on("agents", AgentsReply((make_agent(3),)))
    assert json.loads(call(wiring, "agent", "show", "3", "--json").stdout) == plain(make_agent(3))
    assert wiring.fake.asked("agents") == [AgentsParams((3,))]


def test_status_shows_figures_nodes_plans_and_warnings() -> None:
    wiring = FakeWiring()
    wiring.fake.on("status", make_status(warnings=("node far is out of sight",))).on("nodes", NodesReply((make_node(), FAR)))
    wiring.fake.on("plans", PlansReply((PlanLine("demo", "demo", "failed", 3, 0, 1, 0, 0),)))
    lines = call(wiring, "status").stdout.splitlines()
    assert lines[0].split() == ["status", "running"]
    assert "warning  node far is out of sight" in lines
    assert "local  healthy     0     2/2  10%     20%" in lines
    assert "far    lost        0     0/3   0%      0%  no route" in lines
    assert "demo  failed      3     0       1" in lines


def test_status_goes_on_while_it_is_watched() -> None:
    wiring = FakeWiring()
    wiring.fake.on("status", make_status(), make_status("draining"), CoordinatorUnreachable("gone"))
    result = call(wiring, "status", "--watch", "--json")
    assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == ["running", "draining"]
    assert result.exit_code == 69


# --- what is asked -------------------------------------------------------------------------------------------------------


def test_requests_say_what_the_options_say() -> None:
    wiring = FakeWiring()
    fake = wiring.fake.on("watch", make_watch(1)).on("scale", ScaleReply("scaling", 2, 5, 1)).on("tasks", TasksReply((), 0))
    call(wiring, "status", "--scope", "agent", "--target", "7")
    call(wiring, "down", "--now", "--no-wait", "--timeout", "9")
    call(wiring, "down", "--drain", "--no-wait")
    call(wiring, "scale", "5", "--strategy", "immediate")
    call(wiring, "task", "list", "--plan", "demo", "--status", "failed", "--limit", "7")
    call(wiring, "agent", "send", "1,3,5-7", "y", "--no-enter")
    call(wiring, "agent", "restart", "2-3")
    assert fake.asked("status") == [StatusParams(scope="agent", target="7")]
    assert fake.asked("shutdown")[0] == ShutdownParams(graceful=False, drain_tasks=False, timeout_seconds=9)
    assert fake.asked("shutdown")[1] == ShutdownParams(graceful=True, drain_tasks=True, timeout_seconds=300)
    assert fake.asked("scale") == [ScaleParams(target_count=5, strategy="immediate")]
    assert fake.asked("tasks") == [TasksParams("demo", "failed", 7)]
    assert fake.asked("type_text") == [TypeParams((1, 3, 5, 6, 7), "y", False)]
    assert fake.asked("restart_agent") == [AgentParams(2), AgentParams(3)]


def test_a_task_is_submitted_from_options_from_a_file_and_from_standard_input(tmp_path: Path) -> None:
    wiring = FakeWiring()
    reply = SubmitReply("T", "queued", (), "t")
    fake = wiring.fake.on("submit_task", reply).on("submit_batch", SubmitBatchReply((reply, reply)))
    options = [
        "--run",
        "wc",
        "--id",
        "T",
        "--needs",
        "U",
        "--timeout",
        "5",
        "--count",
        "2",
        "--priority",
        "high",
        "--criterion",
        "All tests pass",
        "--node",
        "majin",
        "--tag",
        "gpu",
        "--tag",
        "eu",
        "--program",
        "gcc",
        "--program",
        "git",
        "--workspace",
        "src",
        "--isolation",
        "shared",
        "--affinity",
        "lines",
    ]
    assert call(wiring, "task", "submit", "Count the lines", *options).exit_code == 0
    params = fake.asked("submit_task")[0]
    assert isinstance(params, SubmitTaskParams)
    assert (params.task_id, params.dependencies, params.priority, params.success_criteria) == ("T", ("U",), "high", ("All tests pass",))
    assert (params.constraints.max_execution_time_seconds, params.target_agents.count) == (5, 2)
    assert (params.node, params.tags, params.programs) == ("majin", ("gpu", "eu"), ("gcc", "git"))
    assert (params.workspace, params.isolation, params.affinity, params.directory) == ("src", "shared", "lines", str(Path.cwd()))
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps({"tasks": [{"description": "One thing to do"}, {"description": "Another thing to do", "directory": "/w"}]}))
    assert len(call(wiring, "task", "submit", "--from", str(file)).stdout.splitlines()) == 2
    batch = fake.asked("submit_batch")[0]
    assert isinstance(batch, SubmitBatchParams)
    assert [each.directory for each in batch.tasks] == [str(Path.cwd()), "/w"]
    assert call(wiring, "task", "submit", "--from", "-", stdin='{"description": "One thing to do"}').exit_code == 0


@pytest.mark.parametrize(
    "args",
    [
        ("task", "submit"),
        ("task", "submit", "x", "--run", "a", "--prompt", "b"),
        ("task", "submit", "x", "--from", "-"),
        ("task", "submit", "--from", "/nowhere.json"),
        ("status", "--scope", "node"),
        ("status", "--target", "local"),
        ("down", "--drain", "--now"),
        ("agent", "send", "0", "y"),
        ("agent", "capture", "5-1"),
        ("scale", "many"),
        ("task", "list", "--status", "odd"),
        ("task", "cancel", "../x"),
        ("statsu",),
        ("status", "--odd"),
        ("run",),
        ("run", "/nowhere.yaml"),
        ("restore", "/nowhere.db"),
        ("ledger", "repair", "--odd"),
    ],
)
def test_bad_input_ends_with_2_and_reaches_nothing(args: tuple[str, ...]) -> None:
    wiring = FakeWiring()
    result = call(wiring, *args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "\nhint: " in result.stderr
    assert wiring.fake.calls == []


def test_a_mistyped_command_is_told_its_neighbour() -> None:
    assert "did you mean 'status'?" in call(FakeWiring(), "statsu").stderr


@pytest.mark.parametrize("text,numbers", [("7", (7,)), ("#7", (7,)), ("1,3,5-7", (1, 3, 5, 6, 7)), ("3, 1, 3", (3, 1)), ("2-2", (2,))])
def test_lists_of_agents_are_read(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_agents(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "1,", "0", "-1", "1-", "2-1", "10001", "1-99999999", "\uff11", "1;2"])
def test_what_is_no_list_of_agents_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_agents(text)


# --- errors --------------------------------------------------------------------------------------------------------------


def kinds() -> list[type[OrchestraError]]:
    found: list[type[OrchestraError]] = [OrchestraError]
    for each in found:
        found += each.__subclasses__()
    return sorted({each for each in found if each.__module__ == "orchestra.errors"}, key=lambda each: each.code)


@pytest.mark.parametrize("kind", kinds(), ids=[kind.code for kind in kinds()])
def test_every_error_has_its_exit_code_and_face(kind: type[OrchestraError]) -> None:
    wiring = FakeWiring()
    wiring.fake.on("status", kind("it is broken", hint="mend it", field="a.b"))
    said = call(wiring, "status")
    assert said.exit_code == FACES[kind.code].exit_code
    assert said.stderr == "error: a.b: it is broken\nhint: mend it\n"
    told = call(wiring, "status", "--json")
    assert told.exit_code == said.exit_code
    assert json.loads(told.stderr) == {"error": {"code": kind.code, "message": "it is broken", "hint": "mend it", "field": "a.b"}}
    assert said.stdout == told.stdout == ""


def test_a_usage_error_is_json_too() -> None:
    told = json.loads(call(FakeWiring(), "status", "--odd", "--json").stderr)["error"]
    assert told["code"] == "bad_input"
    assert told["hint"]


def test_ctrl_c_leaves_no_traceback() -> None:
    wiring = FakeWiring()
    wiring.fake.on("status", KeyboardInterrupt())
    result = call(wiring, "status")
    assert (result.exit_code, result.stderr.strip()) == (130, "interrupted")


def test_verbose_names_the_causes() -> None:
    wiring = FakeWiring()
    error = NotFound("no such task")
    error.__cause__ = OSError("the disk is gone")
    wiring.fake.on("status", error)
    assert "caused by: OSError: the disk is gone" in call(wiring, "status", "-v").stderr
    assert "caused by" not in call(wiring, "status").stderr


@pytest.mark.parametrize("hint,told", [("", "docs/guides/settings.md"), ("unset it", "hint: unset it\n")])
def test_a_bad_setting_is_told_where_settings_are_explained(hint: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wiring = FakeWiring()

    def refuse(root: Path, flags: Mapping[str, str]) -> Settings:
        raise SettingsInvalid("orchestra.yaml:3:5: expected a whole number", field="tasks.retries", hint=hint)

    monkeypatch.setattr(wiring, "load_settings", refuse)
    result = call(wiring, "init")
    assert result.exit_code == 2
    assert told in result.stderr
    assert "--help" not in result.stderr


def test_nothing_running_says_how_to_start() -> None:
    result = call(FakeWiring(running=False), "status")
    assert result.exit_code == 69
    assert "orchestra up" in result.stderr
