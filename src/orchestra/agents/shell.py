"""Kind `shell`: a plain command or program, no model behind it.

`command` and `analysis` are scripts for /bin/sh (an analysis is one whose printed end is the answer), `code` is a program in a named language.
The content always travels as a file: nothing a task says becomes part of a command line.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from orchestra.agents.adapter import ATTEMPT_DIR, Context, Exit, Launch, Signal, Verdict
from orchestra.agents.ending import COMMAND_NOT_FOUND, SUMMARY_CHARACTERS_MAX, exit_in_words, imposed
from orchestra.core.model import OutcomeKind, TaskSpec
from orchestra.errors import BadInput

SUMMARY_LINES: Final = 5
"""Last lines of a command that succeeded which stand for it in a list. All that were kept are the answer of an analysis."""
VARIABLE_BYTES_MAX: Final = 120_000
"""Linux takes at most 131,072 bytes for one variable, its name included; a larger one makes every start fail."""


class Interpreter(NamedTuple):
    """What runs a file of one language. Those that are a POSIX shell give 126 and 127 their special meaning."""

    program: str
    file: str
    is_shell: bool = False


SCRIPT: Final = Interpreter("/bin/sh", "command.sh", is_shell=True)
LANGUAGES: Final = {
    "bash": Interpreter("bash", "program.sh", is_shell=True),
    "javascript": Interpreter("node", "program.js"),
    "node": Interpreter("node", "program.js"),
    "perl": Interpreter("perl", "program.pl"),
    "python": Interpreter("python3", "program.py"),
    "ruby": Interpreter("ruby", "program.rb"),
    "sh": Interpreter("/bin/sh", "program.sh", is_shell=True),
}


def interpreter_for(spec: TaskSpec) -> Interpreter:
    """Returns what runs the payload.

    Raises:
        BadInput: The payload's type or language is not one a plain process can run.
    """
    payload = spec.payload
    match payload.type:
        case "command" | "analysis":
            return SCRIPT
        case "code":
            found = LANGUAGES.get(payload.language.strip().lower())
            if found is None:
                said = f"the language {payload.language[:40]!r} is not known" if payload.language else "code needs a language"
                raise BadInput(said, field="payload.language", hint=f"use one of: {', '.join(LANGUAGES)}")
            return found
        case other:
            raise BadInput(
                f"the kind 'shell' cannot run a payload of type {other[:40]!r}", field="payload.type", hint="use command, code or analysis"
            )


def check_variable(name: str, value: str) -> None:
    """Checks that a process can be started with this variable.

    Raises:
        BadInput: It holds a NUL, or is longer than the kernel takes.
    """
    if "\0" in value:
        raise BadInput("holds a NUL character, which no environment variable can", field=name)
    if len(value.encode("utf-8", "surrogatepass")) > VARIABLE_BYTES_MAX:
        raise BadInput(
            f"is longer than the {VARIABLE_BYTES_MAX} bytes an environment variable may have", field=name, hint="put it into a file"
        )


def last_lines(tail: tuple[str, ...], count: int) -> str:
    """Returns the last lines that are not blank, at most `SUMMARY_CHARACTERS_MAX` characters from the end."""
    lines = [line.rstrip() for line in tail if line.strip()]
    return "\n".join(lines[-count:])[-SUMMARY_CHARACTERS_MAX:]


class Shell:
    """The kind's adapter; it has no state."""

    kind = "shell"
    programs: tuple[str, ...] = ("sh",)
    variables: tuple[str, ...] = ()
    memory_bytes: int = 16 << 20

    def launch(self, spec: TaskSpec, context: Context) -> Launch:
        """Returns the process: the interpreter with the payload's file. The two variables it adds win over the task's own."""
        interpreter = interpreter_for(spec)
        if not spec.payload.content.strip():
            raise BadInput("is empty: there is nothing to run", field="payload.content")
        check_variable("description", spec.description)
        check_variable("requirements", spec.requirements)
        return Launch(
            argv=(interpreter.program, f"{ATTEMPT_DIR}{interpreter.file}"),
            files={interpreter.file: spec.payload.content},
            env={**spec.env, "ORCHESTRA_DESCRIPTION": spec.description, "ORCHESTRA_REQUIREMENTS": spec.requirements},
            stdin="null" if spec.stdin == "none" else "pane",
        )

    def signal(self, line: dict[str, Any]) -> Signal | None:
        """Returns None: a plain command reports nothing while it runs."""
        return None

    def verdict(self, spec: TaskSpec, end: Exit) -> Verdict:
        """Returns done for exit code 0. A shell's 126 and 127 are refused: no retry makes a missing program appear."""
        if (decided := imposed(end)) is not None:
            return decided
        if end.code == 0 and not end.signal:
            count = len(end.tail) if spec.payload.type == "analysis" else SUMMARY_LINES
            return Verdict(OutcomeKind.DONE, summary=last_lines(end.tail, count))
        if end.code in COMMAND_NOT_FOUND and not end.signal and runs_in_shell(spec):
            what = "command not found" if end.code == 127 else "command cannot be executed"
            said = last_lines(end.tail, 1)[:200]
            return Verdict(OutcomeKind.REFUSED, f"{what} (exit code {end.code})" + (f": {said}" if said else ""))
        return Verdict(OutcomeKind.FAILED, exit_in_words(end))


def runs_in_shell(spec: TaskSpec) -> bool:
    """Tells whether a POSIX shell reads the payload, so that 126 and 127 are its words and not the program's own."""
    if spec.payload.type != "code":
        return True
    found = LANGUAGES.get(spec.payload.language.strip().lower())
    return found is not None and found.is_shell


ADAPTER: Final = Shell()
