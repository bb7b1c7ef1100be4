"""One request to the program that works on the machine of a repository.

The program's modules (`orchestra.workspaces.onsite`) go with each request over standard input, before the request itself: about 60 KB, which any link
carries faster than git answers, and nothing has to be installed or kept up to date there. Nothing is interpolated into a command.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any, Final, TypeVar

import msgspec

from orchestra.errors import BadInput, NodeFailed, NotFound, OrchestraError, Refused
from orchestra.nodes.transport import NOT_STARTED, Transport

PACKAGE: Final = "orchestra.workspaces.onsite"
MODULES: Final = (
    "ground",
    "records",
    "copies",
    "worktrees",
    "merging",
    "bringing",
    "proofs",
    "ending",
    "pruning",
    "bundles",
    "touched",
    "main",
)
"""In the order in which they know each other."""
BOOTSTRAP: Final = """
import json, sys, types
wanted = json.loads(sys.stdin.buffer.readline())
package = types.ModuleType(wanted["package"])
for number in range(1, package.__name__.count(".") + 2):
    name = ".".join(package.__name__.split(".")[:number])
    sys.modules[name] = package if name == package.__name__ else types.ModuleType(name)
for name, text in wanted["modules"]:
    module = types.ModuleType(package.__name__ + "." + name)
    sys.modules[module.__name__] = module
    setattr(package, name, module)
    exec(compile(text, name, "exec", dont_inherit=True), module.__dict__)
package.main.main(wanted["request"])
"""
GRACE_MS: Final = 5_000
"""How much longer than its own limit the program may take before it is killed: it then tells what it waited for."""

Answer = TypeVar("Answer")


class MachineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a machine is used."""

    folder: str
    """The orchestra's folder there, outside every checkout. May begin with `~/`."""
    python: str = "python3"
    git: str = "git"
    timeout_ms: int = 600_000
    """A checkout of 100,000 files takes about ten seconds, a hundred of them side by side some minutes."""
    lock_ms: int = 60_000
    """How long the repository's lock, or a lock file of git's, is waited for."""


class Problem(msgspec.Struct, frozen=True):
    """Why it was not done."""

    code: str
    message: str
    hint: str = ""


@functools.cache
def modules() -> tuple[tuple[str, str], ...]:
    """Returns the program's modules by name."""
    folder = resources.files(PACKAGE)
    return tuple((name, (folder / f"{name}.py").read_text(encoding="utf-8")) for name in MODULES)


def request_line(options: MachineOptions, operation: str, arguments: dict[str, Any]) -> bytes:
    """Returns what the program reads first."""
    common = {"op": operation, "folder": options.folder, "git": options.git, "timeout_ms": options.timeout_ms, "lock_ms": options.lock_ms}
    return json.dumps({"package": PACKAGE, "modules": modules(), "request": {**common, **arguments}}).encode() + b"\n"


def argv(options: MachineOptions) -> list[str]:
    """Returns how the program is started."""
    return [options.python, "-I", "-S", "-c", BOOTSTRAP]


async def call(transport: Transport, options: MachineOptions, operation: str, arguments: dict[str, Any], kind: type[Answer]) -> Answer:
    """Has one request done.

    Raises:
        OrchestraError: What `error_of` makes of the program's problem.
        NodeFailed: The program could not run there or did not end in time.
        NodeUnreachable: The machine cannot be reached.
    """
    line = request_line(options, operation, arguments)
    try:
        done = await transport.run(argv(options), stdin=line, timeout_ms=options.timeout_ms + GRACE_MS)
    except TimeoutError as late:
        raise NodeFailed(
            f"{operation} did not end within {options.timeout_ms} ms", hint="is that machine or its disk overloaded?"
        ) from late
    if done.code == NOT_STARTED:
        raise NodeFailed(f"there is no {options.python} to work on repositories with", hint="install Python 3.8 or newer there")
    return answer_of(done.out, done.err, done.code, kind)


def answer_of(out: bytes, err: bytes, code: int | None, kind: type[Answer]) -> Answer:
    """Returns what the last line of the program's output says."""
    last = out.rstrip(b"\n").rpartition(b"\n")[2]
    try:
        found = msgspec.json.decode(last)
        if isinstance(found, dict) and "problem" in found:
            raise error_of(msgspec.convert(found["problem"], Problem))
        return msgspec.convert(found["ok"], kind)
    except (msgspec.MsgspecError, KeyError, TypeError) as broken:
        shown = err.decode(errors="replace").strip()[-500:] or last.decode(errors="replace")[-300:]
        raise NodeFailed(f"the program that works on repositories ended with code {code}: {shown}") from broken


def error_of(problem: Problem) -> OrchestraError:
    """Returns the error that stands for a problem: what a person has to mend is refused, the rest is the machine's."""
    if problem.code == "bad-input":
        return BadInput(problem.message, hint=problem.hint)
    if problem.code == "not-found":
        return NotFound(problem.message, hint=problem.hint)
    if problem.code in ("refused", "tampered", "busy", "stale"):
        return Refused(problem.message, hint=problem.hint)
    return NodeFailed(problem.message, hint=problem.hint)
