"""The part of taking files that needs no disk: which names stand for a command. What touches the disk is in the integration tests."""

from __future__ import annotations

import pytest

from orchestra.edges.filerpc.intake import command_id_of
from orchestra.edges.filerpc.service import with_ids
from orchestra.errors import BadInput
from orchestra.intake.request import CancelParams, SubmitBatchParams, SubmitTaskParams


@pytest.mark.parametrize("name", ["a.json", "CMD-1.json", "a.b_c-d.json", "7.json", "x" * 64 + ".json", "a.json.json"])
def test_a_plain_name_is_a_command_id(name: str) -> None:
    assert command_id_of(name) == name[: -len(".json")]


@pytest.mark.parametrize(
    "name",
    [
        ".json",
        "-rf.json",
        "..json",
        "../../x.json",
        "..%2f..%2fx.json",
        "..\\x.json",
        "a b.json",
        "a\n.json",
        "a.json\n",
        "a\x00.json",
        "\u202egnp.json",
        "\u00e9.json",
        "e\u0301.json",
        "\udcff.json",
        "x" * 65 + ".json",
        "con:1.2.json",
        "$(reboot).json",
        "#(reboot).json",
    ],
)
def test_anything_else_is_not(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        command_id_of(name)
    assert caught.value.field == "(file name)"
    assert str(caught.value).encode(), "the message can be written anywhere"


def test_tasks_without_an_id_get_the_same_one_every_time() -> None:
    params = SubmitTaskParams(description="Add a login form to the page")
    assert with_ids(params, "c1") == with_ids(params, "c1")
    assert with_ids(params, "c1").task_id.startswith("TASK-")
    assert with_ids(params, "c1") != with_ids(params, "c2")


def test_the_tasks_of_a_batch_get_different_ids_and_given_ones_stay() -> None:
    params = SubmitTaskParams(description="Add a login form to the page")
    named = SubmitTaskParams(description="Add a login form to the page", task_id="mine")
    made = with_ids(SubmitBatchParams(tasks=(params, named, params)), "c1").tasks
    assert made[1] == named
    assert len({each.task_id for each in made}) == 3


def test_other_parameters_stay_as_they_are() -> None:
    params = CancelParams(task_id="TASK-1")
    assert with_ids(params, "c1") is params
