"""Kind `rehearsal`: the stand-in CLI of `stage/rehearsal.py`, which plays a scenario and needs no model, key or network.

A task brings its scenario in its requirements, `{"scenario": [step, ...]}` or `{"scenario": {"steps": [...], "model": "...", "usage": {...}}}`, where
`"attempts": {"1": [...]}` has other steps for an attempt; without one the declared files are written. Scenarios are checked here, before anything runs.
An attempt is done only if the exit code is 0 AND a result was printed AND that says no error: each of the three alone has been seen to lie.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from orchestra.agents.adapter import ATTEMPT_DIR, STAGE_DIR, Context, Exit, Launch, Signal, SuccessRule, Verdict
from orchestra.agents.ending import SUMMARY_CHARACTERS_MAX, exit_in_words, imposed
from orchestra.core.model import RETURNS_PLAN, OutcomeKind, TaskSpec, Usage
from orchestra.errors import BadInput
from orchestra.quantity import usd_micros

SCENARIO_KEYS: Final = ("attempts", "model", "steps", "usage")
STEPS_MAX: Final = 10_000
SECONDS_MAX: Final = 86_400
BYTES_MAX: Final = 2**30
LINES_MAX: Final = 10_000_000
TOKENS_MAX: Final = 10**12
COST_USD_MAX: Final = 1e6
OUTPUT_FILES_MAX: Final = 1000
ACTIVITY_CHARACTERS_MAX: Final = 120
SESSION_CHARACTERS_MAX: Final = 200
CRASHES: Final = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGHUP", "SIGILL", "SIGINT", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSEGV", "SIGTERM")
"""Signals a scenario may crash by: those that end a process by default."""


class Value(NamedTuple):
    """What a value may be: how a person is told, and whether one fits."""

    words: str
    fits: Callable[[Any], bool]


class Step(msgspec.Struct, frozen=True):
    """What may stand behind a step's name: nothing, a plain value, or an object with fields."""

    bare: bool = False
    plain: Value | None = None
    required: tuple[str, ...] = ()
    fields: dict[str, Value] = {}


def number(most: float) -> Value:
    """Returns what fits a number from 0 to `most`."""
    return Value(f"a number from 0 to {most:g}", lambda value: type(value) in (int, float) and 0 <= value <= most)


def whole(most: int, least: int = 0) -> Value:
    """Returns what fits a whole number from `least` to `most`."""
    return Value(f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most)


def is_path(value: Any) -> bool:
    """Tells whether a value names a file below the workspace."""
    return isinstance(value, str) and bool(value) and not value.startswith("/") and ".." not in value.split("/") and "\0" not in value


def is_command(value: Any) -> bool:
    """Tells whether a value is a shell command or the words of one."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(word, str) and "\0" not in word for word in value)
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


TEXT: Final = Value("text", lambda value: isinstance(value, str))
FLAG: Final = Value("true or false", lambda value: isinstance(value, bool))
OBJECT: Final = Value("an object", lambda value: isinstance(value, dict))
PATH: Final = Value("a path below the workspace, without '..'", is_path)
COMMAND: Final = Value("a shell command or a list of words", is_command)
SIGNAL: Final = Value(f"one of {', '.join(CRASHES)}", lambda value: value in CRASHES)
FRACTION: Final = number(1)
TOKENS: Final = whole(TOKENS_MAX)
COST_USD: Final = number(COST_USD_MAX)
USAGE: Final = {
    "input_tokens": TOKENS,
    "output_tokens": TOKENS,
    "cache_read_input_tokens": TOKENS,
    "cache_creation_input_tokens": TOKENS,
    "cost_usd": COST_USD,
}

STEPS: Final = {
    "append": Step(required=("path", "text"), fields={"path": PATH, "text": TEXT}),
    "ask": Step(plain=TEXT),
    "binary": Step(bare=True, required=("bytes",), fields={"bytes": whole(BYTES_MAX)}),
    "child": Step(bare=True, fields={"seconds": number(SECONDS_MAX), "hold_output": FLAG}),
    "crash": Step(bare=True, plain=SIGNAL),
    "exit": Step(plain=whole(255), required=("code",), fields={"code": whole(255), "result": FLAG}),
    "fail": Step(plain=TEXT, fields={"message": TEXT, "attempts": whole(1000)}),
    "flood": Step(fields={"lines": whole(LINES_MAX), "bytes": whole(BYTES_MAX)}),
    "hang": Step(bare=True),
    "ignore_term": Step(bare=True),
    "lie": Step(bare=True, plain=TEXT),
    "long_line": Step(required=("bytes",), fields={"bytes": whole(BYTES_MAX)}),
    "progress": Step(plain=FRACTION, required=("value",), fields={"value": FRACTION, "activity": TEXT}),
    "read": Step(plain=PATH),
    "return": Step(fields={}, plain=OBJECT),
    "run": Step(plain=COMMAND),
    "say": Step(plain=TEXT),
    "sleep": Step(plain=number(SECONDS_MAX)),
    "tool": Step(required=("name",), fields={"name": TEXT, "input": OBJECT, "result": TEXT}),
    "usage": Step(fields=USAGE),
    "write": Step(required=("path", "text"), fields={"path": PATH, "text": TEXT, "keep": FLAG}),
}
"""Every step the CLI plays, and what it takes. A test holds this against the CLI's own list."""


def check_value(step: Step, value: Any, field: str) -> None:
    """Checks what stands behind a step's name.

    Raises:
        BadInput: It is not what the step takes.
    """
    if value is None and step.bare:
        return
    if isinstance(value, dict) and step.fields:
        check_fields(step, value, field)
    elif step.plain is None or not step.plain.fits(value):
        raise BadInput(f"{shown(value)} does not fit", field=field, hint=f"it takes {takes(step)}")


def check_fields(step: Step, value: dict[str, Any], field: str) -> None:
    """Checks an object behind a step's name."""
    for name, given in value.items():
        if name not in step.fields:
            raise BadInput(f"there is no field {shown(name)}", field=field, hint=f"known fields: {', '.join(step.fields)}")
        if not step.fields[name].fits(given):
            raise BadInput(f"{shown(given)} does not fit", field=f"{field}.{name}", hint=f"use {step.fields[name].words}")
    missing = [name for name in step.required if name not in value]
    if missing or not value:
        raise BadInput(f"{missing[0] if missing else 'a field'} is missing", field=field, hint=f"it takes {takes(step)}")
    if "lines" in value and "bytes" in value:
        raise BadInput("lines and bytes exclude each other", field=field)


def takes(step: Step) -> str:
    """Returns in words what stands behind a step's name."""
    ways = ["nothing"] if step.bare else []
    ways += [step.plain.words] if step.plain else []
    ways += [f"an object with {', '.join(step.fields)}"] if step.fields else []
    return " or ".join(ways)


def shown(value: Any) -> str:
    """Returns a value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def check_steps(steps: Any, field: str) -> None:
    """Checks all steps of a scenario.

    Raises:
        BadInput: One is unknown or malformed, or there are none or too many.
    """
    if not isinstance(steps, list) or not 1 <= len(steps) <= STEPS_MAX:
        raise BadInput("a scenario is a list of steps, not empty", field=field, hint=f"at most {STEPS_MAX} steps")
    for index, step in enumerate(steps):
        here = f"{field}[{index}]"
        entry = {step: None} if isinstance(step, str) else step
        if not isinstance(entry, dict) or len(entry) != 1:
            raise BadInput("a step is an object with one key, the step's name", field=here)
        name, value = next(iter(entry.items()))
        if name not in STEPS:
            raise BadInput(f"there is no step {shown(name)}", field=here, hint=f"known steps: {', '.join(STEPS)}")
        check_value(STEPS[name], value, f"{here}.{name}")


def scenario_of(spec: TaskSpec, attempt: int = 1) -> dict[str, Any]:
    """Returns what the CLI is given in an attempt: the task's checked scenario, or what one can be made from.

    Raises:
        BadInput: The requirements or the scenario in them are malformed.
    """
    made: dict[str, Any] = {"task": spec.description, "files": list(spec.files)}
    if spec.returns:
        made["returns"] = answer_of(spec)
    try:
        requirements = msgspec.json.decode(spec.requirements)
    except msgspec.DecodeError as exc:
        raise BadInput(f"is not JSON: {exc}", field="requirements") from exc
    if not isinstance(requirements, dict) or requirements.get("scenario") is None:
        return made
    scenario, field = requirements["scenario"], "requirements.scenario"
    if not isinstance(scenario, dict):
        check_steps(scenario, field)
        return {"steps": scenario}
    unknown = [key for key in scenario if key not in SCENARIO_KEYS]
    if unknown:
        raise BadInput(f"there is no field {shown(unknown[0])}", field=field, hint=f"known fields: {', '.join(SCENARIO_KEYS)}")
    check_steps(scenario.get("steps"), f"{field}.steps")
    check_value(Step(fields=USAGE), scenario.get("usage", {"input_tokens": 0}), f"{field}.usage")
    if not TEXT.fits(scenario.get("model", "")):
        raise BadInput("is not text", field=f"{field}.model")
    attempts = scenario.get("attempts", {})
    if not isinstance(attempts, dict):
        raise BadInput("is not an object with a list of steps by the number of an attempt", field=f"{field}.attempts")
    for number, steps in attempts.items():
        if not number.isdigit():
            raise BadInput(f"{shown(number)} is not the number of an attempt", field=f"{field}.attempts")
        check_steps(steps, f"{field}.attempts.{number}")
    kept = {key: value for key, value in scenario.items() if key != "attempts"}
    return {**kept, "steps": attempts.get(str(attempt), scenario["steps"])}


def answer_of(spec: TaskSpec) -> dict[str, Any]:
    """Returns what a rehearsal returns that brings no scenario: a plan of one rehearsal, or a review that approves and says that nobody looked."""
    if spec.returns == RETURNS_PLAN:
        return {"tasks": [{"id": "rehearsed", "agent": "rehearsal", "prompt": f"Rehearse what {spec.id} would have planned."}]}
    looked = "Rehearsed: nobody looked."
    judged = [{"number": number, "met": True, "evidence": looked} for number, _ in enumerate(spec.judges, 1)]
    return {"verdict": "approve", "summary": looked, **({"criteria": judged} if judged else {})}


def count_of(value: Any) -> int:
    """Returns a count an agent reported, or 0 where it is none."""
    return value if type(value) is int and 0 <= value <= TOKENS_MAX else 0


def text_of(value: Any, most: int) -> str:
    """Returns text an agent reported, bounded, or nothing where it is none."""
    return value[:most] if isinstance(value, str) else ""


def usage_of(line: dict[str, Any]) -> Usage:
    """Returns the consumption a line reports, in all. What is not a usable figure counts as 0."""
    counts, cost = line.get("usage"), line.get("total_cost_usd")
    told = counts if isinstance(counts, dict) else {}
    return Usage(
        requests=count_of(line.get("num_turns")),
        tokens_input=count_of(told.get("input_tokens")),
        tokens_output=count_of(told.get("output_tokens")),
        tokens_cache_read=count_of(told.get("cache_read_input_tokens")),
        tokens_cache_write=count_of(told.get("cache_creation_input_tokens")),
        cost_usd_micros=usd_micros(cost, field="total_cost_usd") if isinstance(cost, int | float) and COST_USD.fits(cost) else 0,
    )


def files_of(value: Any) -> tuple[str, ...]:
    """Returns the paths a result names, those that lie in the workspace."""
    return tuple(path for path in value if is_path(path))[:OUTPUT_FILES_MAX] if isinstance(value, list) else ()


class Rehearsal:
    """The kind's adapter; it has no state."""

    kind = "rehearsal"
    programs: tuple[str, ...] = ("python3",)
    variables: tuple[str, ...] = ("REHEARSAL_SPEED",)
    memory_bytes: int = 16 << 20

    def launch(self, spec: TaskSpec, context: Context) -> Launch:
        """Returns the CLI with scenario and prompt as files. The same attempt of the same task always gets the same seed."""
        seed = zlib.crc32(f"{spec.id}#{context.attempt}".encode("utf-8", "replace"))
        argv = ("python3", "-I", "-S", f"{STAGE_DIR}rehearsal.py", "--scenario", f"{ATTEMPT_DIR}scenario.json")
        resumed = ("--resume", context.session) if context.session and not context.session.startswith("-") else ()
        speed = {"REHEARSAL_SPEED": context.settings["speed"]} if "speed" in context.settings else {}
        env = {"REHEARSAL_ESTIMATE_MS": str(spec.estimate_ms), **speed, **spec.env}
        return Launch(
            argv=(*argv, "--prompt", f"{ATTEMPT_DIR}prompt.txt", "--seed", str(seed), *resumed),
            files={"scenario.json": msgspec.json.encode(scenario_of(spec, context.attempt)).decode(), "prompt.txt": spec.payload.content},
            env=env,
            env_pass=() if "REHEARSAL_SPEED" in env else self.variables,
            stdin="null" if spec.stdin == "none" else "pane",
            view="json",
            signals=("system", "result"),
            success=SuccessRule(signal_type="result", signal_fields={"is_error": False}),
        )

    def signal(self, line: dict[str, Any]) -> Signal | None:
        """Returns what a system or result line tells. A question stands until any later signal."""
        session = text_of(line.get("session_id"), SESSION_CHARACTERS_MAX)
        match line.get("type"), line.get("subtype"):
            case "system", "init":
                return Signal("started", session=session)
            case "system", "progress":
                told = line.get("progress")
                activity = text_of(line.get("activity"), ACTIVITY_CHARACTERS_MAX)
                return Signal(
                    activity, float(told) if isinstance(told, int | float) and FRACTION.fits(told) else None, usage_of(line), session
                )
            case "system", "usage":
                return Signal(usage=usage_of(line), session=session)
            case "system", "question":
                question = text_of(line.get("question"), SUMMARY_CHARACTERS_MAX) or "an answer"
                return Signal("waiting for an answer", session=session, waiting_for=question, number=count_of(line.get("ask")))
            case "system", "answer":
                return Signal("answered", session=session)
            case "result", _:
                well = line.get("is_error") is False
                return Signal("done" if well else "failed", 1.0 if well else None, usage_of(line), session)
            case _:
                return None

    def verdict(self, spec: TaskSpec, end: Exit) -> Verdict:
        """Returns done only for exit code 0 with a result that is no error. What was consumed counts however it ended."""
        result = end.last.get("result")
        last = result if result is not None else end.last.get("system", {})
        usage, session = usage_of(last), text_of(last.get("session_id"), SESSION_CHARACTERS_MAX)
        if (decided := imposed(end)) is not None:
            return Verdict(decided.kind, decided.reason, usage, session)
        if result is None:
            return Verdict(OutcomeKind.FAILED, f"ended without a result: {exit_in_words(end)}", usage, session)
        summary = text_of(result.get("result"), SUMMARY_CHARACTERS_MAX)
        files = files_of(result.get("output_files"))
        if result.get("is_error") is not False:
            return Verdict(OutcomeKind.FAILED, summary or "its result says it failed", usage, session, summary, files)
        if end.code != 0 or end.signal:
            return Verdict(OutcomeKind.FAILED, f"said done, but {exit_without_tail(end)}", usage, session, summary, files)
        return Verdict(OutcomeKind.DONE, "", usage, session, summary, files)


def exit_without_tail(end: Exit) -> str:
    """Returns how the process ended; the last printed line is the result, and would say nothing more."""
    return exit_in_words(msgspec.structs.replace(end, tail=()))


ADAPTER: Final = Rehearsal()
