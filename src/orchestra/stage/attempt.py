"""One attempt, from its claim to its exit.json."""

from __future__ import annotations

import os
import time

from .codec import dumps
from .ending import ENV_TAG
from .journal import RECORD_BYTES_MAX
from .output import TAIL_CHARS, TAIL_LINES, Output, shrunk
from .processes import identity_of
from .program import Program
from .spawning import forget_typed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .output import Piece
    from .slot import Slot

ENV_BASE = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TMPDIR", "TZ", "TERM")
ENV_NEVER = ("TMUX", "TMUX_PANE")  # an agent must not drive the server it is shown in


class Attempt:
    """One attempt, from its claim to its exit.json."""

    def __init__(self, slot: Slot, folder: str, spec: dict[str, Any]) -> None:
        self.slot, self.folder, self.spec = slot, folder, spec
        self.names = {"task": spec["task"], "attempt": spec["attempt"]}
        self.output = Output(slot, folder, spec)
        self.cwd = spec["cwd"] or folder + "/work"
        self.env = self._environment()

    def _environment(self) -> dict[str, str]:
        own, spec = os.environ, self.spec
        env = {name: own[name] for name in (*ENV_BASE, *spec["env_pass"]) if name in own}
        env.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
        env.update(spec["env"])
        for name in ENV_NEVER:
            env.pop(name, None)
        env.update(
            {
                "ORCHESTRA_TASK": spec["task"],
                "ORCHESTRA_ATTEMPT": str(spec["attempt"]),
                "ORCHESTRA_AGENT": self.slot.agent,
                ENV_TAG: self.folder,
            }
        )
        if os.path.exists(self.folder + "/prompt.txt"):
            env["ORCHESTRA_PROMPT_FILE"] = self.folder + "/prompt.txt"
        return env

    def perform(self) -> None:
        """Runs the agent, then the checks if it succeeded, and writes down how it went."""
        view, spec = self.slot.view, self.spec
        view.marker = spec["marker"]
        view.say("== %s | %s #%d | %s" % (spec["title"], spec["task"], spec["attempt"], time.strftime("%H:%M:%S")))
        outcome = self._run_agent()
        checks: list[dict[str, Any]] = []
        if spec["checks"] and self._succeeded(outcome):
            self.slot.record("exited", exit=outcome, **self.names)
            checks = self._run_checks()
        self.output.log.close()
        result = fitted({"exit": dict(outcome, dropped_bytes=self.output.log.dropped_bytes), "checks": checks})
        self.slot.keep(self.folder + "/exit.json", dict(self.names, **result))
        self.slot.record("done", **self.names, **result)
        self.slot.settle()
        view.close_attempt(self._told(result))

    def _program(self, argv: list[str], timeout_ms: int | None) -> Program:
        program = Program(self.slot, argv, timeout_ms, self.spec["grace_ms"], self.spec["limits"])
        program.umask = self.spec["umask"]
        return program

    def _run_agent(self) -> dict[str, Any]:
        program = self._program(self.spec["argv"], self.spec["timeout_ms"])
        program.reason = "stopped" if self.slot.stopping_all or self.slot.stop_asked(self.names) else ""
        takers = [(lambda found, source=source: self.output.take_agent(source, found), self.output.splitter()) for source in ("out", "err")]
        if self.spec["stdin"] == "pane":
            forget_typed()
        stdin = {"null": os.devnull, "pane": None, "prompt": self.folder + "/prompt.txt"}[self.spec["stdin"]]
        if not program.reason:
            try:
                if not self.spec["cwd"]:
                    os.makedirs(self.cwd, mode=0o700, exist_ok=True)
                program.start(self.env, self.cwd, stdin, takers)
            except (OSError, ValueError) as problem:
                program.reason = "spawn"
                self.output.take_agent("err", [(("cannot start: %s" % problem).encode(), False, b"")])
        if program.pid:
            start = self._note_child(program, "agent")
            self.slot.record("started", pid=program.pid, start=int(start), **self.names)
            program.wait()
        return self._agent_outcome(program)

    def _agent_outcome(self, program: Program) -> dict[str, Any]:
        output = self.output
        if program.stubborn:
            output.tail = output.tail[1 - TAIL_LINES :] + ["%d processes could not be ended" % program.stubborn]
        outcome = program.outcome()
        outcome.update(lines=output.lines, bytes=program.read_bytes, dropped_bytes=output.log.dropped_bytes)
        outcome.update(last=output.last, tail=output.tail, rss_bytes_max=program.rss_max, cpu_ms=int(program.cpu_s * 1000))
        return fitted({"exit": outcome, "checks": []})["exit"]  # type: ignore[no-any-return]

    def _note_child(self, program: Program, what: str) -> str:
        """Who runs, for a successor. The worker goes on without it if the disk is full: the environment names the folder too."""
        start = identity_of(program.pid).partition(":")[2]
        self.slot.child = {"pid": program.pid, "start": start, "what": what}
        if program.cgroup is not None:
            self.slot.child["cgroups"] = program.cgroup.folders
        self.slot.write_child()
        return start

    def _succeeded(self, outcome: dict[str, Any]) -> bool:
        success = self.spec["success"]
        if outcome["reason"] != "exit" or outcome["code"] not in success["codes"]:
            return False
        expected = success["signal"]
        if expected is None:
            return True
        last = self.output.last.get(expected["type"])
        return last is not None and all(name in last and last[name] == value for name, value in (expected.get("fields") or {}).items())

    def _run_checks(self) -> list[dict[str, Any]]:
        results = []
        for check in self.spec["checks"]:
            if self.slot.stopping_all or self.slot.stop_asked(self.names):
                break
            results.append(self._run_check(check))
        return results

    def _run_check(self, check: dict[str, Any]) -> dict[str, Any]:
        source = "check:" + check["name"]
        tail: list[str] = []

        def take(found: list[Piece]) -> None:
            tail.extend(text[:TAIL_CHARS] for text in self.output.take(source, found)[-TAIL_LINES:])
            del tail[:-TAIL_LINES]

        program = self._program(check["argv"], check["timeout_ms"])
        self.slot.view.say("-- check %s" % check["name"])
        try:
            program.start(self.env, self.cwd, os.devnull, [(take, self.output.splitter()), (take, self.output.splitter())])
        except (OSError, ValueError) as problem:
            program.reason = "spawn"
            take([(("cannot start: %s" % problem).encode(), False, b"")])
        else:
            self._note_child(program, source)
            program.wait()
        outcome = program.outcome()
        passed = outcome["reason"] == "exit" and outcome["code"] == 0
        self.slot.view.say("-- check %s %s" % (check["name"], "passed" if passed else "failed"))
        return dict({"name": check["name"], "passed": passed}, **outcome, tail=tail)

    def _told(self, result: dict[str, Any]) -> str:
        outcome = result["exit"]
        how = {"exit": "exit code %s" % outcome["code"] if outcome["signal"] is None else "ended by signal %s" % outcome["signal"]}
        text = "== %s after %.1f s, %d lines" % (
            how.get(outcome["reason"], outcome["reason"]),
            outcome["duration_ms"] / 1000,
            outcome["lines"],
        )
        failed = [check["name"] for check in result["checks"] if not check["passed"]]
        if result["checks"]:
            text += ", checks " + ("passed" if not failed else "failed: " + ", ".join(failed))
        return text


def fitted(result: dict[str, Any]) -> dict[str, Any]:
    """A result that fits in a record: first the tails are shortened, then the last JSON lines."""
    room = RECORD_BYTES_MAX - 2048
    for tail_lines, last_bytes in ((20, 32768), (10, 16384), (4, 4096), (1, 1024), (0, 0)):
        if len(dumps(result)) <= room:
            break
        outcome = dict(
            result["exit"],
            tail=result["exit"]["tail"][len(result["exit"]["tail"]) - tail_lines :] if tail_lines < 20 else result["exit"]["tail"],
        )
        outcome["last"] = {kind: shrunk(record, last_bytes) for kind, record in outcome["last"].items()}
        checks = [dict(check, tail=check["tail"][max(0, len(check["tail"]) - tail_lines // 2) :]) for check in result["checks"]]
        result = dict(result, exit=outcome, checks=checks)
    return result
