"""Any CLI by a few lines of configuration: how it is started, which line is its last word, and where the figures stand in it.

A section of the settings that has a `command` is a kind of its own (`made`). The kind `command` itself takes the same names from a task's requirements,
`{"cli": {"command": "..."}}`. docs/guides/write-an-adapter.md has an example.

A place is `TYPE:FIELD.FIELD`, a field in the last JSON line of that type: `result:usage.input_tokens`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from orchestra.agents.adapter import ATTEMPT_DIR, Adapter, Context, Exit, Launch, Signal, SuccessRule, Verdict
from orchestra.agents.causes import Cause, failed, unexplained
from orchestra.agents.ending import SUMMARY_CHARACTERS_MAX, exit_in_words, imposed
from orchestra.agents.kindsettings import KindSettings, plain_word
from orchestra.agents.prompt import PROMPT_FILE, prompt_of
from orchestra.agents.rehearsal import ACTIVITY_CHARACTERS_MAX, COST_USD, SESSION_CHARACTERS_MAX, count_of, exit_without_tail, text_of
from orchestra.agents.shell import SUMMARY_LINES, last_lines
from orchestra.core.model import OutcomeKind, TaskSpec, Usage
from orchestra.errors import BadInput
from orchestra.quantity import usd_micros

COUNTS: Final = ("requests", "tokens_input", "tokens_output", "tokens_cache_read", "tokens_cache_write")
PLACES: Final = (*COUNTS, "cost_usd", "session", "summary", "error", "activity")
SETTINGS: Final = (
    "command",
    "resume",
    "stdin",
    "success_codes",
    "refused_codes",
    "auth_codes",
    "success",
    "env",
    "env_pass",
    "memory_mb",
    *PLACES,
)
STDIN: Final = ("null", "prompt", "pane")
MEMORY_MB_DEFAULT: Final = 256
ARGUMENT_BYTES_MAX: Final = 120_000
"""Linux takes at most 131,072 bytes for one argument."""
PROMPT_PATH: Final = "{prompt_file}"
PROMPT_TEXT: Final = "{prompt}"
SESSION: Final = "{session}"


class Place(NamedTuple):
    """A field in the last JSON line of a type."""

    type: str
    path: tuple[str, ...]

    def in_line(self, line: Any) -> Any:
        """Returns what stands there, or None."""
        for name in self.path:
            line = line.get(name) if isinstance(line, dict) else None
        return line


class Cli(NamedTuple):
    """A section, read."""

    argv: tuple[str, ...]
    resume: tuple[str, ...]
    stdin: str
    codes: tuple[int, ...]
    refused: tuple[int, ...]
    unauthorised: tuple[int, ...]
    rule: SuccessRule
    env: dict[str, str]
    env_pass: tuple[str, ...]
    places: dict[str, Place]

    @property
    def types(self) -> tuple[str, ...]:
        """The types of lines that are read."""
        return tuple(dict.fromkeys(place.type for place in self.places.values()))

    def found(self, name: str, last: Mapping[str, Any]) -> Any:
        """Returns what stands at a place, by its name in the settings."""
        place = self.places.get(name)
        return None if place is None else place.in_line(last.get(place.type))


def cli_of(kind: str, values: Mapping[str, str]) -> Cli:
    """Returns the section, checked.

    Raises:
        BadInput: Something in it is unknown or cannot be.
    """
    settings = KindSettings(kind, values, SETTINGS)
    codes = _codes(settings, "success_codes") or (0,)
    places = {name: _place(settings, name) for name in PLACES if settings.text(name)}
    signal_type, fields = _rule(settings)
    argv = _argv(settings, "command")
    if not argv:
        raise BadInput(
            "is missing", field=settings.field("command"), hint=f"the program and its arguments; {PROMPT_PATH} is the prompt's file"
        )
    return Cli(
        argv=argv,
        resume=_argv(settings, "resume"),
        stdin=settings.choice("stdin", STDIN[0], STDIN),
        codes=codes,
        refused=_codes(settings, "refused_codes"),
        unauthorised=_codes(settings, "auth_codes"),
        rule=SuccessRule(codes, signal_type, fields),
        env=_env(settings),
        env_pass=settings.words("env_pass"),
        places=places,
    )


def _argv(settings: KindSettings, name: str) -> tuple[str, ...]:
    """Splits as a shell would, and nothing more: no variables, no pipes."""
    try:
        words = tuple(shlex.split(settings.text(name)))
    except ValueError as exc:
        raise BadInput(f"cannot be split into words: {exc}", field=settings.field(name)) from exc
    for word in words:
        inner = [mark for mark in (PROMPT_PATH, PROMPT_TEXT, SESSION) if mark in word and mark != word]
        if inner:
            raise BadInput(f"{inner[0]} must be a word of its own", field=settings.field(name), hint="write `--file {prompt_file}`")
    return words


def _codes(settings: KindSettings, name: str) -> tuple[int, ...]:
    words = settings.words(name)
    if not all(word.isascii() and word.isdigit() and len(word) <= 3 for word in words):
        raise BadInput("is not a list of exit codes", field=settings.field(name), hint="for example: 0, 3")
    return tuple(int(word) for word in words)


def _place(settings: KindSettings, name: str) -> Place:
    kind, _, path = settings.text(name).partition(":")
    if not kind or not path:
        raise BadInput(
            f"{settings.text(name)[:60]!r} is no place", field=settings.field(name), hint="for example: result:usage.input_tokens"
        )
    return Place(kind, tuple(path.split(".")))


def _rule(settings: KindSettings) -> tuple[str, dict[str, bool | int | str]]:
    """Reads `TYPE` or `TYPE:FIELD=VALUE`: the line that must have come, and what must stand in it."""
    kind, _, condition = settings.text("success").partition(":")
    if not condition:
        return kind, {}
    name, mark, value = condition.partition("=")
    if not (kind and name and mark):
        raise BadInput("is no rule", field=settings.field("success"), hint="for example: result:is_error=false")
    plain: dict[str, bool | int | str] = {"true": True, "false": False}
    return kind, {name: plain.get(value, int(value) if value.isascii() and value.isdigit() and len(value) < 10 else value)}


def _env(settings: KindSettings) -> dict[str, str]:
    pairs = [each.partition("=") for each in settings.words("env")]
    if not all(name and mark for name, mark, _ in pairs):
        raise BadInput("is not a list of variables", field=settings.field("env"), hint="for example: TOOL_HOME=@agent/tool, CI=1")
    return {name: value for name, _, value in pairs}


class Command:
    """An agent kind made from settings."""

    def __init__(self, kind: str, values: Mapping[str, str] | None = None) -> None:
        """Takes a section in; without one the task has to bring it.

        Raises:
            BadInput: Something in the section is unknown or cannot be.
        """
        self.kind = kind
        self._cli = None if values is None else cli_of(kind, values)
        self.programs: tuple[str, ...] = () if self._cli is None else self._cli.argv[:1]
        self.variables: tuple[str, ...] = () if self._cli is None else self._cli.env_pass
        megabytes = None if values is None else KindSettings(kind, values, SETTINGS).number("memory_mb")
        self.memory_bytes: int = (megabytes or MEMORY_MB_DEFAULT) << 20

    def _cli_for(self, spec: TaskSpec) -> Cli:
        if self._cli is not None:
            return self._cli
        try:
            requirements = msgspec.json.decode(spec.requirements)
        except msgspec.DecodeError as exc:
            raise BadInput(f"is not JSON: {exc}", field="requirements") from exc
        given = requirements.get("cli") if isinstance(requirements, dict) else None
        if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
            raise BadInput(
                "needs an object `cli` of texts", field="requirements.cli", hint='for example {"cli": {"command": "mytool {prompt_file}"}}'
            )
        return cli_of(self.kind, given)

    def launch(self, spec: TaskSpec, context: Context) -> Launch:
        """Returns the process. The prompt is a file; it becomes an argument only where the template has `{prompt}`."""
        cli, prompt = self._cli_for(spec), prompt_of(spec)
        session = plain_word(context.session, field="session")
        words = (*cli.argv, *(cli.resume if session else ()))
        if PROMPT_TEXT in words and len(prompt.encode("utf-8", "surrogatepass")) > ARGUMENT_BYTES_MAX:
            raise BadInput("is too long for an argument", field="payload.content", hint=f"use {PROMPT_PATH} or `stdin: prompt`")
        known = {PROMPT_PATH: f"{ATTEMPT_DIR}{PROMPT_FILE}", PROMPT_TEXT: prompt, SESSION: session}
        return Launch(
            argv=tuple(known.get(word, word) for word in words),
            files={PROMPT_FILE: prompt},
            env={**cli.env, **spec.env},
            env_pass=cli.env_pass,
            stdin=cli.stdin,
            view="json" if cli.types or cli.rule.signal_type else "lines",
            signals=cli.types,
            success=cli.rule,
            sandbox=True,
        )

    def signal(self, line: dict[str, Any]) -> Signal | None:
        """Returns what the line has at the places the settings name. Where a task brought its own, lines are only logged."""
        cli = self._cli
        if cli is None:
            return None
        last = {str(line.get("type")): line}
        activity = " ".join(text_of(cli.found("activity", last), SUMMARY_CHARACTERS_MAX).split())[:ACTIVITY_CHARACTERS_MAX]
        session, usage = text_of(cli.found("session", last), SESSION_CHARACTERS_MAX), _usage(cli, last)
        return (
            Signal(activity, usage=None if usage == Usage() else usage, session=session)
            if activity or session or usage != Usage()
            else None
        )

    def verdict(self, spec: TaskSpec, end: Exit) -> Verdict:
        """Returns done for an exit code that means success, with the line that must have come, if the settings name one."""
        try:
            cli = self._cli_for(spec)
        except BadInput as error:
            return Verdict(OutcomeKind.REFUSED, str(error))
        usage, session = _usage(cli, end.last), text_of(cli.found("session", end.last), SESSION_CHARACTERS_MAX)
        if (decided := imposed(end)) is not None:
            return Verdict(decided.kind, decided.reason, usage, session)
        summary = text_of(cli.found("summary", end.last), SUMMARY_CHARACTERS_MAX)
        if said := text_of(cli.found("error", end.last), SUMMARY_CHARACTERS_MAX):
            return Verdict(OutcomeKind.FAILED, " ".join(said.split())[:300], usage, session, summary)
        if end.signal or end.code not in cli.codes:
            if end.code in cli.unauthorised and not end.signal:
                return failed(Cause.AUTH, exit_in_words(end), usage, session)
            if end.code in cli.refused and not end.signal:
                return failed(Cause.CONFIG, exit_in_words(end), usage, session)
            return (
                unexplained(end, usage, session) if end.signal else Verdict(OutcomeKind.FAILED, exit_in_words(end), usage, session, summary)
            )
        missing = _missing(cli.rule, end)
        if missing:
            return Verdict(OutcomeKind.FAILED, f"{exit_without_tail(end)}, but {missing}", usage, session, summary)
        return Verdict(OutcomeKind.DONE, "", usage, session, summary or ("" if cli.types else last_lines(end.tail, SUMMARY_LINES)))


def _missing(rule: SuccessRule, end: Exit) -> str:
    """What the rule asks for beside the exit code and is not so, in words."""
    if not rule.signal_type:
        return ""
    line = end.last.get(rule.signal_type)
    if line is None:
        return f"without a line of type {rule.signal_type!r}"
    return next((f"{name} is not {value!r} in it" for name, value in rule.signal_fields.items() if line.get(name) != value), "")


def _usage(cli: Cli, last: Mapping[str, Any]) -> Usage:
    cost = cli.found("cost_usd", last)
    micros = usd_micros(cost, field="cost_usd") if isinstance(cost, int | float) and COST_USD.fits(cost) else 0
    return Usage(**{name: count_of(cli.found(name, last)) for name in COUNTS}, cost_usd_micros=micros)


def made(sections: Mapping[str, Mapping[str, str]]) -> dict[str, Adapter]:
    """Returns the kinds that the settings define: each section that has a `command`.

    Raises:
        BadInput: Something in one of them is unknown or cannot be.
    """
    return {kind: Command(kind, values) for kind, values in sorted(sections.items()) if values.get("command", "").strip()}


ADAPTER: Final = Command("command")
