"""Agent kinds that the settings define, and sessions that are gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestra.agents.adapter import Exit, Verdict
from orchestra.agents.registry import adapters, define
from orchestra.agents.shell import ADAPTER as SHELL
from orchestra.bootstrap import load_settings
from orchestra.core import commands as c
from orchestra.core.model import AgentSpec, AttemptStatus, Outcome, OutcomeKind, Payload, TaskSpec, Usage
from orchestra.core.sessions import note_session
from orchestra.core.state import AgentState, AttemptState, State, TaskState
from orchestra.engine.earlier import earlier_of
from orchestra.engine.orders import OrderMaker, OrderOptions, SandboxOptions
from orchestra.engine.translate import Translator
from orchestra.errors import SettingsInvalid
from orchestra.ids import AgentId, AttemptId, NodeId, TaskId
from orchestra.workspace import Workspace


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    yield
    define({})


def settings_file(root: Path, text: str) -> Path:
    (root / "config").mkdir()
    (root / "config" / "orchestra.yaml").write_text(text)
    return root


def test_a_section_with_a_command_is_a_kind(tmp_path: Path) -> None:
    load_settings(settings_file(tmp_path, "orchestra: {kinds: {mine: {command: 'mine --file {prompt_file}'}}}"), {})
    assert adapters()["mine"].programs == ("mine",)
    assert list(adapters()) == sorted(adapters())


@pytest.mark.parametrize(
    "text, field",
    [
        ("orchestra: {kinds: {claude: {command: other}}}", "kinds.claude.command"),
        ("orchestra: {kinds: {claud: {model: opus}}}", "kinds.claud"),
        ("orchestra: {kinds: {mine: {command: 'x {prompt}y'}}}", "kinds.mine.command"),
    ],
)
def test_a_kind_that_cannot_be_is_refused_by_name(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(SettingsInvalid) as found:
        load_settings(settings_file(tmp_path, text), {})
    assert found.value.field == field
    assert found.value.hint


def task_after(*outcomes: tuple[int, Outcome], isolated: bool = False) -> TaskState:
    spec = TaskSpec(TaskId("t"), "a poem", kind="codex", payload=Payload("analysis", "write a poem"), isolated=isolated)
    attempts = [
        AttemptState(number, AgentId(agent), NodeId("here"), 0, AttemptStatus.ENDED, outcome=outcome)
        for number, (agent, outcome) in enumerate(outcomes, 1)
    ]
    return TaskState(spec, 0, attempts=attempts, round_start=len(attempts) + 1)


UNVERIFIED = Outcome(OutcomeKind.UNVERIFIED, "no rhyme", session="s-1", usage=Usage(1, 100, 10))


def order(task: TaskState, agent: int, place: Workspace | None = None) -> tuple[list[str], str]:
    """Returns the command line and the prompt of its next attempt, by an agent that remembers all that it did."""
    slot = AgentSpec(AgentId(agent), NodeId("here"))
    remembered = AgentState(slot)
    for each in task.attempts:
        if each.agent == agent and each.outcome is not None:
            note_session(remembered, task.spec, each, each.outcome)
    number = AttemptId(task.id, len(task.attempts) + 1)
    made = OrderMaker(lambda kind: adapters()[kind], OrderOptions()).make(
        task.spec, number, slot, earlier=earlier_of(task, remembered), place=place
    )
    return [str(word) for word in made.spec["argv"]], made.files["prompt.txt"]


def place_of(*, repairs: bool) -> Workspace:
    return Workspace(
        attempt=AttemptId(TaskId("t"), 2), kind="git", repo="/repo", path="/w/t.2", cwd="/w/t.2", base="c0ffee", repairs=repairs
    )


def test_a_session_goes_on_with_the_agent_that_has_it() -> None:
    assert "s-1" in order(task_after((7, UNVERIFIED)), 7)[0]
    assert "s-1" not in order(task_after((7, UNVERIFIED)), 8)[0]
    assert "s-1" not in order(task_after((7, msgspec.structs.replace(UNVERIFIED, kind=OutcomeKind.FAILED))), 7)[0]
    lost = Outcome(OutcomeKind.LOST, "its worker died", session="s-1")
    assert "s-1" not in order(task_after((7, UNVERIFIED), (7, lost)), 7)[0], "nobody knows how it was left"


def test_an_isolated_repair_goes_on_where_the_work_and_the_session_are() -> None:
    task = task_after((7, UNVERIFIED), isolated=True)
    argv, prompt = order(task, 7, place_of(repairs=True))
    assert "s-1" in argv
    assert "failed its checks left it" in prompt
    assert "/w/t.2" in prompt, "it remembers another folder"
    argv, prompt = order(task, 8, place_of(repairs=True))
    assert "s-1" not in argv
    assert "failed its checks left it" in prompt
    assert "/w/t.2" not in prompt
    argv, prompt = order(task, 7, place_of(repairs=False))
    assert "s-1" not in argv, "what it remembers of its files is not true any more"
    assert "begin anew" in prompt


def test_a_kind_whose_sessions_are_bound_to_their_folder_begins_anew_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(adapters()["codex"]), "sessions_move", False)
    argv, prompt = order(task_after((7, UNVERIFIED), isolated=True), 7, place_of(repairs=True))
    assert "s-1" not in argv
    assert "failed its checks left it" in prompt
    assert "/w/t.2" not in prompt
    assert "s-1" in order(task_after((7, UNVERIFIED)), 7)[0]


def test_where_nothing_is_to_be_repaired_the_folder_is_not_spoken_of() -> None:
    failed = msgspec.structs.replace(UNVERIFIED, kind=OutcomeKind.FAILED)
    for outcomes in ([(7, failed)], []):
        prompt = order(task_after(*outcomes, isolated=True), 7, place_of(repairs=False))[1]
        assert "folder" not in prompt


def sandbox_in(mode: str, kind: str, *, wish: str = "", remote: bool = False, place: Workspace | None = None) -> dict[str, Any]:
    options = SandboxOptions(mode, hide=("~/private",), hide_here=("/srv/ledger",), writable=("/cache",))
    payload = Payload("command", "true") if kind == "shell" else Payload("analysis", "Write a poem.")
    spec = TaskSpec(id=TaskId("t"), description="", payload=payload, kind=kind, sandbox=wish)
    made = OrderMaker(lambda kind: adapters()[kind], OrderOptions(sandbox=options)).make(
        spec, AttemptId(spec.id, 1), AgentSpec(AgentId(1), NodeId("here")), remote=remote, place=place
    )
    found: dict[str, Any] = made.spec.get("sandbox", {})
    return found


def test_what_a_model_says_is_done_in_a_sandbox_and_what_the_user_wrote_only_if_the_settings_say_so() -> None:
    for kind in ("claude", "codex", "opencode", "gemini", "aider", "mini-swe-agent"):
        assert sandbox_in("auto", kind)["mode"] == "auto", kind
        assert sandbox_in("off", kind) == {}
    assert sandbox_in("auto", "shell") == {}
    assert sandbox_in("on", "shell") == {"mode": "on", "hide": ["~/private", "/srv/ledger"], "readable": [], "writable": ["/cache"]}


def test_a_task_may_have_a_sandbox_of_its_own_and_may_not_do_without_where_all_have_one() -> None:
    assert sandbox_in("off", "shell", wish="on")["mode"] == "on"
    assert sandbox_in("auto", "shell", wish="on")["mode"] == "on"
    assert sandbox_in("auto", "claude", wish="off") == {}
    assert sandbox_in("on", "claude", wish="off")["mode"] == "on"


def test_a_sandbox_has_the_worktree_and_hides_what_the_coordinator_keeps_on_its_own_machine() -> None:
    attempt = AttemptId(TaskId("t"), 1)
    place = Workspace(attempt=attempt, kind="git", repo="/repo", path="/work/t.1", cwd="/work/t.1/below")
    found = sandbox_in("auto", "claude", remote=True, place=place)
    assert found["worktree"] == "/work/t.1"
    assert found["writable"] == ["/cache", "/work/t.1"]
    assert found["hide"] == ["~/private"], "another machine has none of it"
    assert "worktree" not in sandbox_in("auto", "claude", place=msgspec.structs.replace(place, kind="copy"))


def test_a_program_with_a_sandbox_of_its_own_runs_without_it_in_ours() -> None:
    spec = TaskSpec(id=TaskId("t"), description="", payload=Payload("analysis", "Write a poem."), kind="codex", workspace="/repo")
    made = OrderMaker(lambda kind: adapters()[kind], OrderOptions(sandbox=SandboxOptions("auto"))).make(
        spec, AttemptId(spec.id, 1), AgentSpec(AgentId(1), NodeId("here"))
    )
    assert 'sandbox_mode="workspace-write"' in made.spec["argv"]
    assert "--dangerously-bypass-approvals-and-sandbox" in made.spec["sandbox"]["argv"]
    assert "argv" not in sandbox_in("auto", "codex")


class OfSession:
    """A kind that counts from the beginning of its session."""

    kind = "codex"
    programs: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    memory_bytes = 0
    launch = SHELL.launch
    signal = SHELL.signal

    def verdict(self, spec: TaskSpec, end: Exit) -> Verdict:
        return Verdict(OutcomeKind.DONE, "", Usage(3, 250, 25), session="s-1", usage_of_session=True)


def test_usage_of_a_session_counts_once() -> None:
    state = State()
    other = msgspec.structs.replace(UNVERIFIED, session="s-0")
    task = state.tasks[TaskId("t")] = task_after((7, other), (7, UNVERIFIED))
    found = Translator(lambda: state, lambda _: OfSession()).finished(AttemptId(task.id, 3), {"exit": {"reason": "exit", "code": 0}})
    assert isinstance(found, c.AttemptFinished)
    assert found.outcome.usage == Usage(2, 150, 15)
