"""Rehearsals: what a scenario may hold, what a scene becomes for each player, and what a plan becomes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestra.agents.adapter import Context
from orchestra.agents.registry import adapters
from orchestra.agents.rehearsal import ADAPTER
from orchestra.core.model import Payload, TaskSpec
from orchestra.edges.cli.rehearse import at_once_max, passed_in
from orchestra.errors import BadInput, PortFailed
from orchestra.ids import TaskId
from orchestra.intake.document import parse
from orchestra.intake.planfile import PlanDocument, parse_plan
from orchestra.rehearse import loopback, venue
from orchestra.rehearse.model import mock_model
from orchestra.rehearse.plan import cast_of, rehearsed
from orchestra.rehearse.scenario import BYTES_MAX, Direction, Scene, read_scenario
from orchestra.rehearse.script import fixtures_of, mark_of, steps_of, writing
from orchestra.views import AttemptView, CheckView, TaskDetail, TaskView

PLAN = """
name: small
workspace: build
agents: [{count: 2, kind: claude, name: CCG}, {count: 1, kind: codex, category: coding}, {count: 1, kind: shell}]
defaults: {node: far, retries: 0}
tasks:
  - {id: a, agent: claude, prompt: Do a., files: [a.txt], tags: [gpu]}
  - {id: b, agent: codex, needs: [a], prompt: Do b., isolation: shared}
  - {id: c, agent: gemini, prompt: Do c.}
  - {id: d, run: make, workspace: other}
"""
SCENE = Scene(
    {"a.txt": "good\n"}, {1: {"a.txt": "bad\n", "b.txt": "x\n"}}, Direction(say="Written.", seconds=2, input_tokens=10, cost_usd=0.5)
)


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


# --- scenario ------------------------------------------------------------------------------------------------------------


def test_a_scenario_is_read_from_plain_files(tmp_path: Path) -> None:
    files = {
        "a/files/x/y.txt": "1",
        "a/files/z": "2",
        "a/attempt-2/z": "3",
        "a/scene.yaml": "say: Done it.\nrun: [make]\n",
        "b/files/__pycache__/q": "",
    }
    found = read_scenario(write(tmp_path, files))
    assert found["a"] == Scene({"x/y.txt": "1", "z": "2"}, {2: {"z": "3"}}, Direction(say="Done it.", run=("make",)))
    assert found["b"] == Scene({})
    assert (found["a"].files_of(1), found["a"].files_of(2)) == ({"x/y.txt": "1", "z": "2"}, {"x/y.txt": "1", "z": "3"})


@pytest.mark.parametrize(
    "files, said",
    [
        ({"a": "x"}, "not a folder"),
        ({"a/odd/x": ""}, "not part of a scene"),
        ({"a/attempt-0/x": ""}, "not part of a scene"),
        ({"a/scene.yaml": "saay: x"}, "saay"),
        ({"a/scene.yaml": "seconds: -1"}, "seconds"),
        ({"a/files/x": "x" * (BYTES_MAX + 1)}, "bytes"),
        ({"a/files/x": "\0"}, "NUL"),
    ],
)
def test_what_is_no_scenario_is_refused_with_its_place(tmp_path: Path, files: dict[str, str], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_scenario(write(tmp_path, files))
    assert said in str(caught.value)
    assert caught.value.hint or caught.value.field


def test_a_link_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a/files/x": ""})
    (tmp_path / "a/files/link").symlink_to("/etc/passwd")
    with pytest.raises(BadInput, match="neither file nor folder"):
        read_scenario(tmp_path)
    with pytest.raises(BadInput, match="no folder"):
        read_scenario(tmp_path / "none")


# --- script --------------------------------------------------------------------------------------------------------------


def written_by(steps: list[dict[str, Any]]) -> dict[str, str]:
    return {step["write"]["path"]: step["write"]["text"] for step in steps if "write" in step}


def test_the_stand_in_plays_the_files_of_its_attempt() -> None:
    assert written_by(steps_of(SCENE, 1)) == {"a.txt": "bad\n", "b.txt": "x\n"}
    assert written_by(steps_of(SCENE, 2)) == {"a.txt": "good\n"}
    assert steps_of(SCENE, 2)[-1] == {"say": "Written."}
    assert sum(step["sleep"] for step in steps_of(SCENE, 1) if "sleep" in step) == pytest.approx(2)


def test_the_adapter_takes_the_steps_of_the_attempt_and_refuses_what_is_none() -> None:
    def launched(scenario: Any, attempt: int) -> Any:
        spec = msgspec.structs.replace(small().drafts[0], requirements=json.dumps({"scenario": scenario}))
        return json.loads(ADAPTER.launch(spec, Context(attempt=attempt, agent=1)).files["scenario.json"])

    scenario = {"steps": [{"say": "x"}], "attempts": {"1": [{"say": "first"}]}}
    assert launched(scenario, 1) == {"steps": [{"say": "first"}]}
    assert launched(scenario, 2) == {"steps": [{"say": "x"}]}
    wrongs: list[Any] = [[], {"one": [{"say": "x"}]}, {"1": [{"dance": 1}]}]
    for wrong in wrongs:
        with pytest.raises(BadInput, match="attempts"):
            launched({**scenario, "attempts": wrong}, 1)


def test_a_mock_model_replies_by_task_and_attempt() -> None:
    first, later, end = fixtures_of({"a": ("claude", SCENE)})
    assert first["match"] == {"userMessage": mark_of("a"), "hasToolResult": False, "sequenceIndex": 0}
    assert "sequenceIndex" not in later["match"]
    assert [call["name"] for call in first["response"]["toolCalls"]] == ["Write", "Write"]
    assert later["response"]["toolCalls"][0]["arguments"] == {"file_path": "a.txt", "content": "good\n"}
    assert (end["match"]["hasToolResult"], end["response"]["content"]) == (True, "Written.")
    assert first["latency"] * 20 == 2000


def test_codex_writes_by_commands_and_claude_too_where_a_file_is_there_already() -> None:
    codex = fixtures_of({"a": ("codex", SCENE)})[0]["response"]["toolCalls"]
    assert {call["name"] for call in codex} == {"exec_command"}
    shared = fixtures_of({"a": ("claude", SCENE)}, {"a.txt"})[0]["response"]["toolCalls"]
    assert [call["name"] for call in shared] == ["Bash", "Write"]
    both = fixtures_of({"a": ("claude", SCENE), "b": ("codex", Scene({"b.txt": ""}))})[0]["response"]["toolCalls"]
    assert [call["name"] for call in both] == ["Write", "Bash"]


@pytest.mark.parametrize("text", ["", "a\n", "no end of line", "$(touch no) `x` 'q' \\\n", "END-OF-RECORDED-FILE\n"])
def test_a_command_writes_any_text(tmp_path: Path, text: str) -> None:
    subprocess.run(["/bin/sh", "-c", writing("x y/it's", text)], cwd=tmp_path, check=True)
    assert (tmp_path / "x y" / "it's").read_text() == text
    assert not (tmp_path / "no").exists()


# --- plan ----------------------------------------------------------------------------------------------------------------


def small() -> PlanDocument:
    return parse_plan(PLAN, source="small.yaml", directory="/plans")


def test_who_plays_depends_on_what_is_there() -> None:
    scenes = {"a": SCENE, "b": SCENE, "c": SCENE}
    real = cast_of(small(), scenes, real=True)
    assert (set(real.spoken), set(real.played), real.kinds) == ({"a", "b"}, {"c"}, ("claude", "codex"))
    assert set(cast_of(small(), {}, real=True).played) == {"a", "b", "c"}, "nothing is recorded"
    assert set(cast_of(small(), scenes, real=False).played) == {"a", "b", "c"}, "shell tasks are run as they are"


def made(*, real: bool, agents: int | None = None) -> tuple[dict[str, Any], PlanDocument]:
    plan, places = small(), {"/plans/build": "/copy/build", "/plans/other": "/copy/other"}
    value = rehearsed(parse(PLAN, source="small.yaml").value, plan, cast_of(plan, {"a": SCENE, "b": SCENE}, real=real), places, agents)
    return value, parse_plan(json.dumps(value), source="small.json", directory="/nowhere")


def test_what_is_to_be_judged_is_judged_by_the_stand_in() -> None:
    text = "name: p\nworkspace: build\ntasks: [{id: a, agent: claude, prompt: x, success_criteria: [It is readable]}]"
    plan = parse_plan(text, source="p.yaml", directory="/plans")
    for real in (True, False):
        cast = cast_of(plan, {"a": SCENE}, real=real)
        value = rehearsed(parse(text, source="p.yaml").value, plan, cast, {"/plans/build": "/copy/build"}, None)
        drafts = parse_plan(json.dumps(value), source="p.json", directory="/nowhere").drafts
        assert [(draft.id, draft.kind) for draft in drafts] == [("a", "claude" if real else "rehearsal"), ("a.judge", "rehearsal")]
        assert (drafts[1].reviews, drafts[1].judges, drafts[1].workspace) == ("a", ("It is readable",), "/copy/build")


def test_a_plan_is_rehearsed_in_other_folders_with_the_same_tasks() -> None:
    value, plan = made(real=False)
    by = {str(task.id): task for task in plan.drafts}
    assert [task.kind for task in plan.drafts] == ["rehearsal", "rehearsal", "rehearsal", "shell"]
    assert [task.workspace for task in plan.drafts] == ["/copy/build"] * 3 + ["/copy/other"]
    assert [task.isolated for task in plan.drafts] == [task.isolated for task in small().drafts]
    assert [task.needs for task in plan.drafts] == [task.needs for task in small().drafts]
    assert json.loads(by["a"].requirements)["scenario"]["attempts"]
    assert json.loads(by["c"].requirements) == {}
    assert not any(task.node or task.tags for task in plan.drafts), "it happens on this machine"
    assert [(group["kind"], group["name"]) for group in value["agents"]] == [
        ("rehearsal", "REHEARSAL-CCG"),
        ("rehearsal", "REHEARSAL"),
        ("shell", "REHEARSAL"),
    ]


def test_real_programs_get_the_prompt_with_a_mark() -> None:
    value, plan = made(real=True)
    assert [task.kind for task in plan.drafts] == ["claude", "codex", "rehearsal", "shell"]
    assert plan.drafts[0].payload.content == f"Do a.\n\n{mark_of('a')}\n"
    assert value["agents"][-1] == {"count": 1, "kind": "any", "name": "REHEARSAL"}, "somebody has to play the third"
    assert made(real=True, agents=5)[0]["agents"] == [{"count": 5, "kind": "any", "name": "REHEARSAL"}]


# --- venue ---------------------------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=u", "-c", "user.email=u@x"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_each_workspace_has_a_stand_in_and_stays_as_it_is(tmp_path: Path) -> None:
    repo = write(tmp_path / "repo", {"sub/a": "1", "b": "2"})
    write(tmp_path / "plain", {"x": "3"})
    git(repo, "init", "-q")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "x")
    write(repo, {"uncommitted": "4"})
    text = "name: p\ndefaults: {agent: claude, prompt: x}\ntasks:\n" + "".join(
        f"  - {{id: t{number}, workspace: {name}}}\n" for number, name in enumerate(("repo/sub", "plain", "none", "repo"))
    )
    plan = parse_plan(text, source="p", directory=str(tmp_path))
    places = venue.copy_workspaces(plan.drafts, _prepared(tmp_path / "stage"))
    assert [(place.here.relative_to(tmp_path / "stage/work").as_posix(), place.repository) for place in places] == [
        ("sub/sub", True),
        ("plain-2", False),
        ("none-3", True),
        ("repo-4", True),
    ]
    assert venue.files_there(places[3]) == ["b", "sub/a"]
    assert not (places[3].here / "uncommitted").exists()
    assert git(places[3].here, "remote") == ""
    assert (places[1].here / "x").read_text() == "3"
    assert venue.files_there(places[2]) == []
    assert venue.merged(places[3], "p") is None
    git(places[3].here, "checkout", "-qb", "orchestra/p/merged")
    write(places[3].here, {"b": "changed", "new": ""})
    git(places[3].here, "add", ".")
    git(places[3].here, "commit", "-qm", "y")
    git(places[3].here, "checkout", "-q", "-")
    assert venue.merged(places[3], "p") == ("orchestra/p/merged", 2)


def _prepared(folder: Path) -> Path:
    venue.prepare(folder)
    return folder


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"x": ""})
    with pytest.raises(BadInput, match="not empty"):
        venue.prepare(tmp_path)


def test_no_key_of_anybody_gets_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "CODEX_API_KEY", "AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "a real secret")
    env = venue.environment(tmp_path, (), Path("/venv/bin/python"))
    assert "a real secret" not in env.values()
    assert env["HOME"] == str(tmp_path / "home")
    assert env["PATH"].startswith("/venv/bin:")


def test_recorded_agents_may_do_what_their_scenario_says_also_in_a_shared_folder() -> None:
    kinds = json.loads(venue.settings_text("http://127.0.0.1:1", ("claude", "codex")))["orchestra"]["kinds"]
    shared = TaskSpec(id=TaskId("t"), description="", payload=Payload("analysis", "Go."), workspace="/copy")
    for kind, option in (("claude", "bypassPermissions"), ("codex", "--dangerously-bypass-approvals-and-sandbox")):
        settings = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in kinds[kind].items()}
        assert option in adapters()[kind].launch(shared, Context(1, 1, settings=settings)).argv


def test_programs_are_found_in_a_checkout_and_missing_ones_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert venue.find_programs(("claude",), (tmp_path,)).missing == ("claude", "aimock", "node")
    programs = write(tmp_path / ".cache/agents/bin", dict.fromkeys(("claude", "aimock", "node"), "#!/bin/sh\n"))
    for each in programs.iterdir():
        each.chmod(0o755)
    found = venue.find_programs(("claude",), (tmp_path / "deep" / "er",))
    assert (found.missing, found.folders) == ((), (str(programs),))


def test_a_mock_model_that_does_not_start_is_told_with_its_words(tmp_path: Path) -> None:
    with (
        pytest.raises(PortFailed, match="no port left"),
        mock_model(("/bin/sh", "-c", "echo no port left; exit 1"), [], tmp_path, dict(os.environ)),
    ):
        pass


def test_without_unshare_nothing_is_enclosed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert not loopback.can_enclose()


# --- figures -------------------------------------------------------------------------------------------------------------


def attempt(assigned_ms: int, ended_ms: int, *tail: str) -> AttemptView:
    check = CheckView("tests", True, 0, "", 1, tail)
    return AttemptView(1, 1, "n", "ended", "done", "", 0, None, assigned_ms, assigned_ms, ended_ms, 1, (check,), (), 0, 0, 0, "")


def detail(*attempts: AttemptView) -> TaskDetail:
    task = TaskView("p/t", "", "completed", "k", "coding", "normal", "p", (), (), 1, 0, 0, 0, 0, 0, 0, 0)
    return TaskDetail(task, "", attempts, 1, (), 0, (), "")


def test_the_figures_of_the_end() -> None:
    assert at_once_max([detail(attempt(0, 10)), detail(attempt(0, 5), attempt(5, 9))]) == 2
    assert at_once_max([]) == 0
    assert passed_in([detail(attempt(0, 1, "...", "42 passed, 5 subtests passed in 0.5s"))]) == 42
    assert passed_in([detail(attempt(0, 1, "Ran 7 tests in 0.1s", "", "OK"))]) == 7
    assert passed_in([detail(attempt(0, 1, "fine"))]) == 0
