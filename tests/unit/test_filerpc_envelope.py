"""What a command file says, in both forms, and how it is answered in the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestra.edges.filerpc.envelope import COMMANDS, Form, NotACommand, answer, parse, refusal
from orchestra.errors import IllegalMove
from orchestra.intake.request import parse_params
from orchestra.usecases import METHODS

TASK = {
    "task_id": "TASK-7d4e",
    "description": "Add a login form to the start page",
    "category": "coding",
    "priority": "high",
    "target_agents": {"strategy": "affinity", "count": 3},
    "payload": {"type": "command", "content": "make login"},
    "requirements": {"language": "python"},
    "constraints": {"max_execution_time_seconds": 60, "max_cost_dollars": 1.5},
    "success_criteria": ["All tests pass"],
}
PARAMS: dict[str, dict[str, Any]] = {
    "init": {"phase": 1, "nodes": ["mugen", "majin"], "agent_count": 18},
    "submit_task": TASK,
    "submit_batch": {"tasks": [TASK, {**TASK, "task_id": "TASK-8"}]},
    "status": {"scope": "agent", "target": 7},
    "scale": {"target_count": 50, "strategy": "gradual"},
    "shutdown": {"graceful": True, "drain_tasks": False, "timeout_seconds": 300},
    "cancel": {"task_id": "TASK-7d4e", "reason": "not needed"},
    "estimate_cost": {"task": "Implement feature X", "agents": 10, "estimated_tokens": 50_000},
    "answer": {"task_id": "TASK-7d4e", "text": "yes", "question": 2},
}


def jsonrpc(method: str, params: Any = None, **more: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": f"orchestra.{method}", "params": params or {}, **more}).encode()


def refused(body: bytes | dict[str, Any], command_id: str = "c1") -> NotACommand:
    with pytest.raises(NotACommand) as caught:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode(), command_id)
    return caught.value


def test_every_command_has_a_use_case_and_an_example_here() -> None:
    assert set(COMMANDS) <= set(METHODS)
    assert set(COMMANDS) == set(PARAMS)


@pytest.mark.parametrize("method", COMMANDS)
def test_both_forms_say_the_same(method: str) -> None:
    one = parse(jsonrpc(method, PARAMS[method]))
    other = parse(json.dumps({"command": f"orchestra.{method}", "parameters": PARAMS[method]}).encode())
    assert one.method == other.method == method
    assert one.params == other.params == PARAMS[method]
    assert one.form == Form(True, 1)
    assert not other.form.jsonrpc
    assert parse_params(METHODS[method].params, one.params) == parse_params(METHODS[method].params, other.params)


def test_parameters_may_be_left_out_and_the_prefix_too() -> None:
    for body in (b'{"command": "status"}', b'{"jsonrpc": "2.0", "method": "orchestra.status", "params": null}'):
        assert (parse(body).method, dict(parse(body).params)) == ("status", {})


@pytest.mark.parametrize("number", [0, -1, 7, 10**17, 1.5, "", "abc", "\u8aad", None])
def test_an_id_of_any_kind_comes_back(number: object) -> None:
    asked = parse(json.dumps({"jsonrpc": "2.0", "id": number, "method": "status"}).encode())
    for content in (answer(asked.form, {}), refusal(asked.form, IllegalMove("no"))):
        assert json.loads(content)["id"] == number


def test_a_request_without_id_is_answered_with_null() -> None:
    assert json.loads(answer(parse(b'{"jsonrpc": "2.0", "method": "status"}').form, {}))["id"] is None


@pytest.mark.parametrize("number", [True, False, [], {}, [1]])
def test_an_id_that_is_none_is_refused(number: object) -> None:
    assert refused({"jsonrpc": "2.0", "id": number, "method": "status"}).field == "id"


@pytest.mark.parametrize(
    "body,field,hint",
    [
        ({"jsonrpc": "2.0", "methd": "status", "method": "status"}, "methd", "method"),
        ({"command": "status", "paramters": {}}, "paramters", "parameters"),
        ({"command": "status", "params": {}}, "params", "parameters"),
        ({"jsonrpc": "2.0", "method": "status", "command": "status"}, "command", "fields: "),
        ({"jsonrpc": "2.0", "method": "submit_taks"}, "method", "orchestra.submit_task"),
        ({"command": "orchestra.initt"}, "command", "orchestra.init"),
        ({"command": "__class__"}, "command", "commands: "),
        ({"command": "retry"}, "command", "commands: "),
        ({"command": 7}, "command", "commands: "),
        ({"jsonrpc": "1.0", "method": "status"}, "jsonrpc", "2.0"),
        ({"jsonrpc": 2.0, "method": "status"}, "jsonrpc", "2.0"),
        ({"method": "status"}, "jsonrpc", "2.0"),
        ({"jsonrpc": "2.0"}, "method", "commands: "),
        ({}, "jsonrpc", "2.0"),
        ({"jsonrpc": "2.0", "method": "status", "params": [1]}, "params", "name"),
        ({"command": "status", "parameters": "all"}, "parameters", "name"),
        ({"command": "status", "command_id": "c2"}, "command_id", "c1"),
    ],
)
def test_a_wrong_envelope_names_the_field(body: dict[str, Any], field: str, hint: str) -> None:
    error = refused(body)
    assert error.field == field
    assert hint in error.hint
    assert not error.perhaps_unfinished


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" \n",
        b'{"jsonrpc": "2.0", "me',
        b'{"command": "status"} {"command": "status"}',
        b'{"command": "status", "command": "shutdown"}',
        b'{"command": "cancel", "parameters": {"task_id": "a", "task_id": "b"}}',
        b'{"command": "scale", "parameters": {"target_count": NaN}}',
        b'{"command": "scale", "parameters": {"target_count": 1e999}}',
        b'{"command": "scale", "parameters": {"target_count": ' + b"9" * 5000 + b"}}",
        b'{"command": "status", "parameters": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"command": "status", "parameters": {"a": ' + b"[" * 100 + b"]" * 100 + b"}}",
        b'{"command": "\xff"}',
        b'\xef\xbb\xbf{"command": "status"}',
        b'{"command": "\\ud800"}',
        b"command: status",
        b"7",
        b'"status"',
    ],
)
def test_what_is_not_one_json_object_may_still_be_in_the_making(body: bytes) -> None:
    error = refused(body)
    assert (error.field, error.number) == ("(file)", -32700)
    assert error.perhaps_unfinished
    assert error.hint


def test_a_list_of_requests_is_refused_at_once() -> None:
    error = refused(b"[" + jsonrpc("status") + b"]")
    assert not error.perhaps_unfinished
    assert "submit_batch" in error.hint


@pytest.mark.parametrize("cut", range(1, len(jsonrpc("scale", {"target_count": 5}))))
def test_no_beginning_of_a_request_is_a_request(cut: int) -> None:
    assert refused(jsonrpc("scale", {"target_count": 5})[:cut]).perhaps_unfinished


def test_the_digest_is_of_what_is_said_not_of_how() -> None:
    one = parse(b'{"command": "scale", "parameters": {"target_count": 5, "strategy": "gradual"}}')
    same = parse(b'{"parameters":{"strategy":"gradual","target_count":5},\n"command":"scale"}')
    other = parse(b'{"command": "scale", "parameters": {"target_count": 6, "strategy": "gradual"}}')
    assert one.digest == same.digest != other.digest


def test_answers_have_the_form_of_the_question() -> None:
    assert json.loads(answer(Form(True, "a"), {"status": "running"})) == {"jsonrpc": "2.0", "id": "a", "result": {"status": "running"}}
    assert json.loads(answer(Form(False), {"status": "running"})) == {"status": "running"}


def test_refusals_have_the_form_of_the_question() -> None:
    error = IllegalMove("not now", field="phase", hint="wait")
    assert json.loads(refusal(Form(True, 3), error)) == {
        "jsonrpc": "2.0",
        "id": 3,
        "error": {"code": -32003, "message": "not now", "data": {"code": "illegal_move", "hint": "wait", "field": "phase"}},
    }
    assert json.loads(refusal(Form(False), error)) == {
        "error": {"code": "illegal_move", "message": "not now", "field": "phase", "hint": "wait"}
    }


def test_a_wrong_envelope_is_answered_in_the_form_it_tried() -> None:
    error = refused({"command": "statsu"})
    assert json.loads(refusal(error.form, error))["error"]["field"] == "command"
    error = refused({"jsonrpc": "2.0", "id": 9, "method": "statsu"})
    told = json.loads(refusal(error.form, error))
    assert (told["id"], told["error"]["code"]) == (9, -32601)
