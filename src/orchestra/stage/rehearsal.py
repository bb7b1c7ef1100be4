"""A stand-in for an agent CLI: plays a scenario, and prints what a coding agent prints. No model, no network, no key, no cost.

    rehearsal.py [--scenario FILE] [--prompt FILE] [--seed N] [--resume SESSION]

A scenario is JSON: `{"steps": [step, ...], "model": "...", "usage": {...}}`. A step is an object with one key, the step's name; a step that needs
nothing more may be the bare name. Without steps it is made from `{"task": "...", "files": [...]}`: every declared file that does not exist is
written, with something plausible in it. docs and the adapter of kind `rehearsal` list the steps; `STEPS` below is what they mean.

Output is JSON lines in the form of Claude Code's stream-json: `system/init`, `assistant`, `user` (tool results), `system/progress`, and
`result` last. Exit code 0 means the result says no error, 1 that it does, 2 that the scenario or the command line is wrong.

The files it touches lie below the current folder. Environment: ORCHESTRA_ATTEMPT (number of the attempt), REHEARSAL_SPEED (how many times
faster sleeps pass; 0 means not to wait at all), REHEARSAL_ESTIMATE_MS (what a made scenario takes a fraction of).

This file is pushed to nodes and runs on their own Python, 3.8 or newer, standard library only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import time
from typing import Any, Callable, NoReturn

OUTPUT_CHARACTERS_MAX = 4000
"""How much of a command's output or a file's text a printed line repeats."""
FLOOD_LINE_BYTES = 80
CHUNK_BYTES = 65536
CHILD_SECONDS = 3600.0
PACE = 0.05
"""Fraction of its estimate that a made scenario takes: a minute's work is rehearsed in three seconds."""
ESTIMATE_MS = 60_000
COUNTERS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
NOT_A_PATH = frozenset("*?[")

OK, FAILED, MISUSED = 0, 1, 2


class ScenarioBad(Exception):
    """The scenario, a step or a setting is malformed."""


class Ended(Exception):
    """The scenario is over, before its last step."""

    def __init__(self, code: int, text: str = "", is_error: bool = False, result: bool = True) -> None:
        super().__init__(text)
        self.code, self.text, self.is_error, self.result = code, text, is_error, result


class Voice:
    """Prints the lines, and holds what each of them carries: session, model, counters."""

    def __init__(self, session: str, model: str, seed: int) -> None:
        self.session, self.model = session, model
        self.usage = dict.fromkeys(COUNTERS, 0)
        self.cost_usd = 0.0
        self.turns = 0
        self.ids = random.Random(seed)
        self.started = time.monotonic()

    def raw(self, data: bytes) -> None:
        """Prints bytes as they are."""
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def line(self, kind: str, **fields: Any) -> None:
        """Prints one JSON line."""
        whole = {"type": kind, **fields, "session_id": self.session}
        self.raw(json.dumps(whole, ensure_ascii=False).encode("utf-8", "replace") + b"\n")

    def system(self, subtype: str, **fields: Any) -> None:
        """Prints a system line. It carries the counters, so that an end without a result is still accounted for."""
        self.line("system", subtype=subtype, **fields, **self.counted())

    def counted(self) -> dict[str, Any]:
        """Returns what was consumed so far, in all."""
        return {"num_turns": self.turns, "total_cost_usd": round(self.cost_usd, 6), "usage": dict(self.usage)}

    def assistant(self, block: dict[str, Any]) -> None:
        """Prints one block of what the agent says or does."""
        self.turns += 1
        message = {"id": self.made_id("msg"), "type": "message", "role": "assistant", "model": self.model, "content": [block]}
        self.line("assistant", message={**message, "usage": dict(self.usage)}, parent_tool_use_id=None)

    def say(self, text: str) -> None:
        """Prints words of the agent."""
        self.assistant({"type": "text", "text": text})

    def tool(self, name: str, given: dict[str, Any], act: Callable[[], tuple[str, bool]]) -> str:
        """Prints a tool's use, does it, prints its result and returns that. A result that is an error ends the scenario."""
        use = self.made_id("toolu")
        self.assistant({"type": "tool_use", "id": use, "name": name, "input": {key: clipped(value) for key, value in given.items()}})
        text, is_error = act()
        block = {"type": "tool_result", "tool_use_id": use, "content": clipped(text), "is_error": is_error}
        self.line("user", message={"role": "user", "content": [block]}, parent_tool_use_id=None)
        if is_error:
            raise Ended(FAILED, f"{name}: {last_line(text)}", is_error=True)
        return text

    def result(self, text: str, is_error: bool, output_files: list[str]) -> None:
        """Prints the last line."""
        self.line(
            "result",
            subtype="error_during_execution" if is_error else "success",
            is_error=is_error,
            result=text,
            duration_ms=round((time.monotonic() - self.started) * 1000),
            **self.counted(),
            output_files=output_files,
            permission_denials=[],
        )

    def made_id(self, prefix: str) -> str:
        """Returns an id that the seed decides."""
        return f"{prefix}_{self.ids.getrandbits(64):016x}"


class Player:
    """Plays the steps, one after the other."""

    def __init__(self, voice: Voice, speed: float, attempt: int) -> None:
        self.voice, self.speed, self.attempt = voice, speed, attempt
        self.written: dict[str, None] = {}
        self.last_words = ""
        self.asked = 0

    def play(self, steps: list[Any]) -> int:
        """Plays all steps and returns the exit code."""
        try:
            for number, step in enumerate(steps, 1):
                self.step(number, step)
            end = Ended(OK, self.last_words or "Done.")
        except Ended as ended:
            end = ended
        if end.result:
            self.voice.result(end.text, end.is_error, sorted(self.written))
        return end.code

    def step(self, number: int, step: Any) -> None:
        """Plays one step."""
        name, value = named(number, step)
        try:
            STEPS[name](self, value)
        except (KeyError, TypeError, ValueError, OverflowError) as exc:
            raise ScenarioBad(f"steps[{number - 1}].{name}: {type(exc).__name__}: {exc}") from exc
        except OSError as exc:
            raise Ended(FAILED, f"{name}: {exc}", is_error=True) from exc

    def on_say(self, text: str) -> None:
        self.last_words = text
        self.voice.say(text)

    def on_write(self, value: dict[str, Any]) -> None:
        path, text = value["path"], value["text"]
        target = below_here(path)
        if value.get("keep") and os.path.lexists(target):
            return self.voice.say(f"{path} exists and stays as it is.")
        self.voice.tool("Write", {"file_path": path, "content": text}, lambda: (put(target, text, "w"), False))
        self.written[os.path.normpath(path)] = None
        return None

    def on_append(self, value: dict[str, Any]) -> None:
        path, text = value["path"], value["text"]
        target = below_here(path)
        self.voice.tool("Edit", {"file_path": path, "new_string": text}, lambda: (put(target, text, "a"), False))
        self.written[os.path.normpath(path)] = None

    def on_read(self, path: str) -> None:
        target = below_here(path)

        def act() -> tuple[str, bool]:
            try:
                with open(target, encoding="utf-8", errors="replace") as file:
                    return file.read(OUTPUT_CHARACTERS_MAX), False
            except OSError as exc:
                return str(exc), True

        self.voice.tool("Read", {"file_path": path}, act)

    def on_return(self, value: dict[str, Any]) -> None:
        path = os.environ.get("ORCHESTRA_RETURN")
        if not path:
            raise ScenarioBad("return: nothing is to be returned; ORCHESTRA_RETURN names no file")
        text = json.dumps(value)
        self.voice.tool("Write", {"file_path": path, "content": text}, lambda: (put(path, text, "w"), False))

    def on_run(self, command: Any) -> None:
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else [str(word) for word in command]
        shown = command if isinstance(command, str) else " ".join(argv)

        def act() -> tuple[str, bool]:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            text = done.stdout.decode("utf-8", "replace")[-OUTPUT_CHARACTERS_MAX:]
            return (text, False) if done.returncode == 0 else (f"{text.rstrip()}\nexit code {done.returncode}".lstrip(), True)

        self.voice.tool("Bash", {"command": shown}, act)

    def on_sleep(self, seconds: float) -> None:
        if self.speed > 0:
            time.sleep(min(checked(seconds), 86400.0) / self.speed)

    def on_progress(self, value: Any) -> None:
        told = value if isinstance(value, dict) else {"value": value}
        more = {"activity": told["activity"]} if "activity" in told else {}
        self.voice.system("progress", progress=checked(told["value"]), **more)

    def on_usage(self, value: dict[str, Any]) -> None:
        for name in COUNTERS:
            self.voice.usage[name] += int(value.get(name, 0))
        self.voice.cost_usd += checked(value.get("cost_usd", 0.0))
        self.voice.system("usage")

    def on_fail(self, value: Any) -> None:
        told = value if isinstance(value, dict) else {"message": value}
        if "attempts" not in told or self.attempt <= int(told["attempts"]):
            raise Ended(FAILED, str(told.get("message", "the scenario says so")), is_error=True)

    def on_exit(self, value: Any) -> None:
        told = value if isinstance(value, dict) else {"code": value}
        raise Ended(int(told["code"]), self.last_words or "Done.", result=bool(told.get("result", False)))

    def on_crash(self, name: Any) -> None:
        number = signal.Signals[name or "SIGSEGV"]
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def on_hang(self, _: Any) -> None:
        while True:
            signal.pause()

    def on_ignore_term(self, _: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def on_flood(self, value: dict[str, Any]) -> None:
        lines = int(value["lines"]) if "lines" in value else -(-int(value["bytes"]) // FLOOD_LINE_BYTES)
        at_once = CHUNK_BYTES // FLOOD_LINE_BYTES
        for first in range(0, lines, at_once):
            several = range(first + 1, min(first + at_once, lines) + 1)
            self.voice.raw(b"".join(b"flood %09d " % number + b"." * (FLOOD_LINE_BYTES - 17) + b"\n" for number in several))

    def on_binary(self, value: Any) -> None:
        left = int(value["bytes"]) if value else 4096
        while left > 0:
            chunk = min(left, CHUNK_BYTES)
            self.voice.raw(self.voice.ids.getrandbits(8 * chunk).to_bytes(chunk, "little"))
            left -= chunk
        self.voice.raw(b"\n")

    def on_long_line(self, value: dict[str, Any]) -> None:
        self.voice.say("x" * int(value["bytes"]))

    def on_child(self, value: Any) -> None:
        told = value or {}
        seconds, hold = checked(told.get("seconds", CHILD_SECONDS)), bool(told.get("hold_output", False))
        self.voice.tool("Bash", {"command": f"sleep {seconds:g} &"}, lambda: (f"started process {detached(seconds, hold)}", False))

    def on_ask(self, question: str) -> None:
        self.asked += 1
        self.voice.system("question", question=question, ask=self.asked)
        answer = sys.stdin.buffer.readline().decode("utf-8", "replace")
        if not answer:
            raise Ended(FAILED, f"nobody answered: {question}", is_error=True)
        self.voice.system("answer", question=question, answer=clipped(answer.rstrip("\r\n")), answered=self.asked)

    def on_lie(self, text: Any) -> None:
        raise Ended(OK, str(text or "All files are written and every test passes."))

    def on_tool(self, value: dict[str, Any]) -> None:
        self.voice.tool(value["name"], value.get("input", {}), lambda: (value.get("result", ""), False))


STEPS: dict[str, Callable[[Player, Any], None]] = {name[3:]: act for name, act in sorted(vars(Player).items()) if name.startswith("on_")}
"""Every step by name."""


def named(number: int, step: Any) -> tuple[str, Any]:
    """Returns a step's name and value."""
    if isinstance(step, str):
        step = {step: None}
    if not isinstance(step, dict) or len(step) != 1:
        raise ScenarioBad(f"steps[{number - 1}] is not an object with one key, the step's name")
    name, value = next(iter(step.items()))
    if name not in STEPS:
        raise ScenarioBad(f"steps[{number - 1}]: there is no step {name!r}; known steps: {', '.join(STEPS)}")
    return name, value


def clipped(value: Any) -> Any:
    """Returns a value as a printed line shows it."""
    if isinstance(value, str) and len(value) > OUTPUT_CHARACTERS_MAX:
        return f"{value[:OUTPUT_CHARACTERS_MAX]}… ({len(value)} characters)"
    return value


def last_line(text: str) -> str:
    """Returns the last line that is not blank."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")[:500]


def checked(value: Any) -> float:
    """Returns a finite number from 0 up."""
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{value!r} is not a number from 0 up")
    return number


def below_here(path: str) -> str:
    """Returns the real path of a file below the current folder; `..`, absolute paths and links that lead out are refused."""
    here = os.path.realpath(os.curdir)
    target = os.path.realpath(os.path.join(here, path))
    outside = os.path.isabs(path) or ".." in path.split("/") or "\0" in path
    if outside or not target.startswith(here.rstrip(os.sep) + os.sep):
        raise ScenarioBad(f"{path!r} does not lie below the current folder")
    return target


def put(target: str, text: str, mode: str) -> str:
    """Writes or appends text, makes the folders it needs, and says so."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, mode, encoding="utf-8", newline="") as file:
        file.write(text)
    return f"{len(text)} characters written"


def detached(seconds: float, hold: bool) -> int:
    """Starts a process that is no child of ours and in a session of its own; `hold` lets it keep our output open. Returns its pid."""
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        try:
            sleep_apart(seconds, hold, writer)
        finally:
            os._exit(127)
    os.close(writer)
    os.waitpid(middle, 0)
    pid_text = os.read(reader, 32)
    os.close(reader)
    return int(pid_text)


def sleep_apart(seconds: float, hold: bool, writer: int) -> None:
    """Forks once more in a session of its own; the parent tells the pid and ends, the child becomes a sleep."""
    os.setsid()
    pid = os.fork()
    if pid:
        os.write(writer, str(pid).encode())
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0,) if hold else (0, 1, 2):
        os.dup2(null, number)
    os.execvp("sleep", ["sleep", str(seconds)])


def made_steps(scenario: dict[str, Any], prompt: str) -> list[Any]:
    """Returns the steps for a task that brings no scenario: write what it declares and take a fraction of its estimate."""
    task = str(scenario.get("task") or next((line for line in prompt.splitlines() if line.strip()), "the task")).strip()
    files = [path for path in scenario.get("files", []) if isinstance(path, str) and is_plain(path)]
    pause = number_of("REHEARSAL_ESTIMATE_MS", ESTIMATE_MS) / 1000 * PACE / (len(files) + 1)
    steps: list[Any] = [
        {"say": f"I rehearse: {task[:200]}"},
        {"progress": {"value": 0.0, "activity": "reading the task"}},
        {"sleep": pause},
    ]
    for number, path in enumerate(files, 1):
        steps += [
            {"write": {"path": path, "text": plausible(path, task), "keep": True}},
            {"usage": {"input_tokens": 400 + len(task), "output_tokens": 120}},
            {"progress": {"value": number / (len(files) + 1), "activity": f"wrote {path}"}},
            {"sleep": pause},
        ]
    if isinstance(scenario.get("returns"), dict):
        steps.append({"return": scenario["returns"]})
    what = f"{len(files)} file{'' if len(files) == 1 else 's'} in place" if files else "the task declares no files, so nothing was written"
    return [*steps, {"usage": {"input_tokens": 200, "output_tokens": 60}}, {"say": f"Rehearsed: {what}."}]


def is_plain(path: str) -> bool:
    """Tells whether a declared path names one file below here, and is not a pattern or a folder."""
    return bool(path) and not (NOT_A_PATH & set(path) or path.endswith("/") or os.path.isabs(path) or ".." in path.split("/"))


def plausible(path: str, task: str) -> str:
    """Returns a small content that fits the file's name and is valid in its language."""
    words = " ".join(task.split()).replace("\\", "/").replace('"', "'")[:100]
    stem, extension = os.path.splitext(os.path.basename(path))
    if extension == ".py":
        if stem.startswith("test"):
            body = "import unittest\n\n\nclass RehearsalTest(unittest.TestCase):\n    def test_runs(self):\n        self.assertTrue(True)\n"
            return f'"""Rehearsed: {words}."""\n\n{body}'
        return f'"""Rehearsed: {words}."""\n' + ("" if stem == "__init__" else '\n\ndef describe():\n    return __doc__ or ""\n')
    if extension == ".json":
        return json.dumps({"rehearsed": words}, indent=2) + "\n"
    if extension == ".md":
        return f"# {stem}\n\nRehearsed: {words}.\n"
    if extension in (".js", ".ts", ".go", ".rs", ".c", ".h", ".java"):
        return f"// Rehearsed: {words}\n"
    return f"# Rehearsed: {words}\n"


def number_of(name: str, default: float) -> float:
    """Returns the number an environment variable holds."""
    text = os.environ.get(name, "")
    try:
        return checked(text) if text else default
    except ValueError as exc:
        raise ScenarioBad(f"{name} is {text!r}, which is not a number from 0 up") from exc


def read_text(path: str | None) -> str:
    """Returns a file's text, or nothing where no file was named."""
    if path is None:
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def read_scenario(path: str | None) -> dict[str, Any]:
    """Returns the scenario of the file."""
    if path is None:
        return {}
    try:
        found = json.loads(read_text(path))
    except ValueError as exc:
        raise ScenarioBad(f"{path} is not JSON: {exc}") from exc
    if not isinstance(found, dict) or not isinstance(found.get("steps", []), list):
        raise ScenarioBad(f'{path} does not hold an object with a list of "steps"')
    return found


def rehearse(arguments: argparse.Namespace) -> int:
    """Plays what the command line names and returns the exit code."""
    scenario = read_scenario(arguments.scenario)
    steps = scenario["steps"] if "steps" in scenario else made_steps(scenario, read_text(arguments.prompt))
    for number, step in enumerate(steps, 1):
        named(number, step)
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(8), "big")
    voice = Voice(arguments.resume or session_of(seed), str(scenario.get("model", "rehearsal")), seed)
    player = Player(voice, number_of("REHEARSAL_SPEED", 1.0), int(number_of("ORCHESTRA_ATTEMPT", 1)))
    voice.system("init", cwd=os.getcwd(), model=voice.model, tools=["Bash", "Edit", "Read", "Write"], mcp_servers=[], apiKeySource="none")
    if scenario.get("usage"):
        player.step(0, {"usage": scenario["usage"]})
    return player.play(steps)


def session_of(seed: int) -> str:
    """Returns a session id in the form of a UUID that the seed decides."""
    digits = f"{random.Random(f'session {seed}').getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:]}"


def leave(code: int) -> NoReturn:
    """Ends without the interpreter's own last flush, which fails when nobody reads any more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def main() -> NoReturn:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="rehearsal.py", description="Plays a scenario the way a coding agent prints its work.")
    parser.add_argument("--scenario", metavar="FILE", help="JSON with the steps; without it one is made from the task")
    parser.add_argument("--prompt", metavar="FILE", help="what the agent is asked")
    parser.add_argument("--seed", type=int, metavar="N", help="decides session, ids and noise; the same seed prints the same")
    parser.add_argument("--resume", metavar="SESSION", help="session to go on with")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        leave(rehearse(arguments))
    except BrokenPipeError:
        leave(128 + signal.SIGPIPE)
    except (ScenarioBad, OSError) as exc:
        print(f"rehearsal: {exc}", file=sys.stderr)
        leave(MISUSED)


if __name__ == "__main__":
    main()
