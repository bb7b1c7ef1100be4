"""Where tasks work: one rule for those of plans and for those that are submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestra.bootstrap.wiring import app_options
from orchestra.core.model import TaskSpec
from orchestra.errors import BadInput
from orchestra.ids import TaskId
from orchestra.intake.planfile import parse_plan
from orchestra.intake.request import SubmitTaskParams, parse_params, to_spec
from orchestra.root import Root
from orchestra.settings import load

CASES = [
    ("shell", {}, ("/w", True, False)),
    ("claude", {}, ("/w", True, True)),
    ("own", {}, ("/w", True, True)),
    ("rehearsal", {}, ("", True, False)),
    ("rehearsal", {"workspace": "site"}, ("/w/site", True, False)),
    ("rehearsal", {"workspace": "site", "isolation": "worktree"}, ("/w/site", True, True)),
    ("rehearsal", {"isolation": "worktree"}, ("", True, False)),
    ("shell", {"isolation": "worktree"}, ("/w", True, True)),
    ("claude", {"isolation": "shared"}, ("/w", True, False)),
    ("claude", {"workspace": "../other/./x"}, ("/other/x", True, True)),
    ("claude", {"workspace": "/srv/repo"}, ("/srv/repo", False, True)),
]


def where(spec: TaskSpec) -> tuple[str, bool, bool]:
    return spec.workspace, spec.workspace_here, spec.isolated


def submitted(directory: str = "/w", **fields: object) -> TaskSpec:
    params = parse_params(SubmitTaskParams, {"description": "Write the page of the shop", **fields})
    return to_spec(params, task_id=TaskId("t"), default_kind="", directory=directory)


@pytest.mark.parametrize("kind, fields, place", CASES)
def test_a_plans_task_and_a_submitted_one_work_in_the_same_place(kind: str, fields: dict[str, str], place: tuple[str, bool, bool]) -> None:
    more = "".join(f", {name}: {value}" for name, value in fields.items())
    (planned,) = parse_plan(f"name: p\ntasks: [{{id: t, agent: {kind}, prompt: x{more}}}]", source="p", directory="/w").drafts
    assert where(planned) == where(submitted(agent=kind, **fields)) == place


def test_a_task_may_say_itself_where_its_folder_is_seen_from() -> None:
    assert where(submitted(agent="claude", directory="/srv", workspace="a")) == ("/srv/a", True, True)
    assert where(submitted(agent="claude", directory="/srv")) == ("/srv", True, True)
    assert submitted(agent="claude", affinity="shop").affinity == "shop"


def test_where_there_is_no_folder_a_task_has_a_private_one_and_names_others_whole() -> None:
    assert where(submitted("", agent="claude")) == ("", True, False)
    assert where(submitted("", agent="claude", workspace="/srv/repo")) == ("/srv/repo", False, True)
    with pytest.raises(BadInput) as refused:
        submitted("", agent="claude", workspace="repo")
    assert (refused.value.field, "absolute" in refused.value.hint) == ("workspace", True)


def test_the_folder_of_those_that_name_none_is_the_settings_or_where_the_orchestra_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def directory(**flags: str) -> str:
        return app_options(load(None, "", {}, {name.replace("_", "."): value for name, value in flags.items()}), Root(tmp_path)).directory

    monkeypatch.chdir(tmp_path)
    assert directory() == str(tmp_path)
    assert directory(tasks_workspace="/srv/repo") == "/srv/repo"
    assert directory(tasks_workspace="~/repo") == str(Path.home() / "repo")
    with pytest.raises(BadInput, match=r"begins with / or ~/"):
        directory(tasks_workspace="repo")
    monkeypatch.chdir("/")
    assert directory() == "", "a service does not mean the whole machine"
