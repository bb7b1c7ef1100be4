"""One attempt, from its claim to its exit.json."""

from __future__ import annotations

import os
import time

from .codec import dumps
from .ending import ENV_TAG
from .journal import RECORD_BYTES_MAX
from .output import TAIL_CHARS, TAIL_LINES, Output, shrunk
from .processes import boot_id, start_of_child
from .program import Program
from .returning import FILE, FOLDER, make_place, returned, too_large
from .spawning import forget_typed
from .temporary import forget_temporary, make_temporary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .output import Piece
    from .sandbox import Sandbox
    from .slot import Slot

ENV_BASE = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TMPDIR", "TZ", "TERM")
SANDBOX_LEAVE_MS = 600000  # to take over the commits of a day, or to remove as many files
ENV_NEVER = ("TMUX", "TMUX_PANE")  # an agent must not drive the server it is shown in

_env_base: dict[str, str] = {}


def search_path() -> str:
    """Where programs are looked for: as the worker does, and in the usual places that a login without a terminal leaves out."""
    folders = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":")
    more = (os.path.expanduser("~/.local/bin"), "/usr/local/bin")
    return ":".join(folders + [folder for folder in more if folder not in folders])


class Attempt:
    """One attempt, from its claim to its exit.json."""

    def __init__(self, slot: Slot, folder: str, spec: dict[str, Any]) -> None:
        self.slot, self.folder, self.spec = slot, folder, spec
        slot.asked = 0
        self.names = {"task": spec["task"], "attempt": spec["attempt"]}
        self.named = dumps(self.names)[1:-1]
        self.output = Output(slot, folder, spec)
        self.cwd = spec["cwd"] or folder + "/work"
        self.env = self._environment()
        self.sandbox: Sandbox | None = None
        self.temporary = ""

    def _environment(self) -> dict[str, str]:
        own, spec = os.environ, self.spec
        if not _env_base:
            _env_base.update({name: own[name] for name in ENV_BASE if name in own})
            _env_base["PATH"] = search_path()
        env = dict(_env_base)
        if spec["env_pass"]:
            env.update({name: own[name] for name in spec["env_pass"] if name in own})
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
        if os.access(self.folder + "/prompt.txt", os.F_OK):
            env["ORCHESTRA_PROMPT_FILE"] = self.folder + "/prompt.txt"
        if spec["returns"]:
            place = self.folder + "/" + FOLDER
            self.slot.persist(lambda: make_place(place), place)
            env["ORCHESTRA_RETURN"] = self.folder + "/" + FILE
            env["ORCHESTRA_RETURNS"] = spec["returns"]
        return env

    def perform(self) -> None:
        """Runs the agent, then the checks if it succeeded, and writes down how it went."""
        view, spec = self.slot.view, self.spec
        view.marker = spec["marker"]
        view.say("== %s | %s #%d | %s" % (spec["title"], spec["task"], spec["attempt"], time.strftime("%H:%M:%S")))
        outcome = self._run_agent()
        checks: list[dict[str, Any]] = []
        succeeded = self._succeeded(outcome)
        more = {"returned": returned(self.folder)} if spec["returns"] and succeeded else {}
        if spec["checks"] and succeeded:
            outcome = fitted({"exit": outcome, "checks": []})[0]["exit"]
            self.slot.record("exited", **self.names, exit=outcome)
            checks = self.run_checks()
            if self.slot.fence is not None and self.slot.fence.fallen:
                outcome["reason"] = "fenced"
        self.leave()
        self.output.log.close()
        outcome["dropped_bytes"] = self.output.log.dropped_bytes
        result, body = fitted(dict({"exit": outcome, "checks": checks}, **more))
        self.slot.keep(self.folder + "/exit.json", b"{%s,%s" % (self.named, body[1:]))
        self.slot.tell("done", b"%s,%s" % (self.named, body[1:-1]))
        self.slot.settle()
        view.close_attempt(self._told(result))

    def _program(self, argv: list[str], timeout_ms: int | None) -> Program:
        program = Program(self.slot, argv, timeout_ms, self.spec["grace_ms"], self.spec["limits"])
        program.umask = self.spec["umask"]
        program.sandbox = self.sandbox
        return program

    def enter(self) -> None:
        """Makes what is the attempt's own: a sandbox, or else at least a folder for temporary files. A task that names one has that."""
        self._enter_sandbox()
        if self.sandbox is None and "TMPDIR" not in self.spec["env"]:
            try:
                self.env["TMPDIR"] = self.temporary = make_temporary(self.folder)
            except OSError as problem:  # the disk is full, say
                self.slot.view.say("! without a folder of its own for temporary files: %s" % problem)

    def _enter_sandbox(self) -> None:
        """Makes the sandbox that the order asks for; where there is none to be had, the order says whether it goes without."""
        wanted = self.spec["sandbox"]
        if not wanted:
            return
        from .sandbox import Sandbox, Unavailable

        if self.spec["checks"]:
            self._make_reports()  # what is there now can be written from inside
        try:
            sandbox = Sandbox(self.slot.base, self.folder, self.slot.agent, self.cwd, self.env, search_path(), wanted)
        except Unavailable as problem:
            if wanted["mode"] == "on":
                raise OSError("no sandbox, and sandbox.mode is 'on': %s" % problem) from None
            self.slot.view.say("! not in a sandbox: %s" % problem)
            return
        sandbox.prepare()
        self.sandbox = sandbox

    def leave(self) -> None:
        """Takes out what is to last, and removes the rest. None of that is done by what ran in it."""
        if self.sandbox is None:
            forget_temporary(self.folder, self.temporary)
            return
        try:
            for what, argv, env in self.sandbox.leave():
                self._run_outside(what, argv, env)
        except OSError as problem:  # it may have been left in any state
            self.slot.view.say("! the sandbox was left as it is: %s" % problem)

    def _run_outside(self, what: str, argv: list[str], env: dict[str, str]) -> None:
        tail: list[str] = []

        def take(found: list[Piece]) -> None:
            tail.extend(text[:TAIL_CHARS] for text in self.output.take("sandbox", found))
            del tail[:-1]

        program = Program(self.slot, argv, SANDBOX_LEAVE_MS, self.spec["grace_ms"], {})
        program.start(env, "/", os.devnull, [(take, self.output.splitter()), (take, self.output.splitter())])
        program.wait()
        if program.status != 0:
            self.slot.view.say("! the sandbox could not %s: %s" % (what, tail[-1] if tail else "no reason given"))

    def _run_agent(self) -> dict[str, Any]:
        program = self._program(self.spec["argv"], self.spec["timeout_ms"])
        program.reason = self._not_to_run()
        takers = [(lambda found, source=source: self.output.take_agent(source, found), self.output.splitter()) for source in ("out", "err")]
        if self.spec["stdin"] == "pane":
            forget_typed()
        stdin = {"null": os.devnull, "pane": None, "prompt": self.folder + "/prompt.txt", "screen": -1}[self.spec["stdin"]]
        if not program.reason:
            try:
                self._make_work_folder()
                self.enter()
                program.sandbox = self.sandbox
                if self.sandbox is not None and self.spec["sandbox"].get("argv"):
                    program.argv = self.spec["sandbox"]["argv"]
                if stdin == -1:
                    stdin = program.open_screen(self.folder)
                program.start(self.env, self.cwd, stdin, takers)
            except (OSError, ValueError) as problem:
                program.reason = "spawn"
                self.output.take_agent("err", [(("cannot start: %s" % problem).encode(), False, b"")])
        if program.pid:
            start = self._note_child(program, "agent")
            base = b',"base":%s' % dumps(self.spec["base"]) if self.spec["base"] else b""
            self.slot.tell("started", b'%s,"pid":%d,"start":%s%s' % (self.named, program.pid, start.encode(), base), at_once=False)
            self.slot.hold()
            program.wait()
        return self._agent_outcome(program)

    def _not_to_run(self) -> str:
        """Why nothing more is to be started for this attempt, or nothing."""
        slot = self.slot
        if slot.stopping_all or slot.stop_asked(self.names):
            return "stopped"
        return "fenced" if slot.fence is not None and not slot.fence.holds() else ""

    def _make_work_folder(self) -> None:
        """A folder of our own: the private one, or what a workspace of the coordinator's machine has here."""
        if not self.spec["cwd"]:
            try:
                os.mkdir(self.cwd, 0o700)
            except FileExistsError:
                pass
        elif os.path.dirname(self.cwd) == self.slot.base + "/spaces":
            os.makedirs(self.cwd, mode=0o700, exist_ok=True)

    def _agent_outcome(self, program: Program) -> dict[str, Any]:
        output = self.output
        if program.stubborn:
            output.tail = output.tail[1 - TAIL_LINES :] + ["%d processes could not be ended" % program.stubborn]
        outcome = program.outcome()
        outcome.update(lines=output.lines, bytes=program.read_bytes, dropped_bytes=output.log.dropped_bytes)
        outcome.update(last=output.last, tail=output.tail, rss_bytes_max=program.rss_max, cpu_ms=int(program.cpu_s * 1000))
        return outcome

    def _note_child(self, program: Program, what: str) -> str:
        """Who runs, for a successor. Before anything else, as from now on something could be left behind."""
        start = start_of_child(program.pid, *program.start_ticks)
        child = {"pid": program.pid, "start": start, "what": what, "boot": boot_id()}
        if program.cgroup is not None:
            child["cgroups"] = program.cgroup.folders
        self.slot.note_child(child)
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

    def run_checks(self) -> list[dict[str, Any]]:
        """Runs one check after the other; gives what each came to, of fewer if it is to end before."""
        results = []
        self._make_reports()
        for check in self.spec["checks"]:
            if self._not_to_run():
                break
            results.append(self._run_check(check))
        return results

    def _make_reports(self) -> None:
        """The folder in which checks leave what they counted; what somebody else put there is no report."""
        folder = self.folder + "/reports"
        try:
            if os.path.islink(folder):
                os.unlink(folder)
            if not os.path.isdir(folder):
                os.mkdir(folder, 0o700)
            for name in os.listdir(folder):
                os.unlink(folder + "/" + name)
        except OSError:
            pass  # the disk is full, say: a check that wants it says so

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


def fitted(result: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """A result that fits in a record, and its JSON: first the tails are shortened, then the last JSON lines."""
    room = RECORD_BYTES_MAX - 2048
    body = dumps(result)
    for tail_lines, last_bytes in ((20, 32768), (10, 16384), (4, 4096), (1, 1024), (0, 0)):
        if len(body) <= room:
            break
        outcome = dict(
            result["exit"],
            tail=result["exit"]["tail"][len(result["exit"]["tail"]) - tail_lines :] if tail_lines < 20 else result["exit"]["tail"],
        )
        outcome["last"] = {kind: shrunk(record, last_bytes) for kind, record in outcome["last"].items()}
        checks = [dict(check, tail=check["tail"][max(0, len(check["tail"]) - tail_lines // 2) :]) for check in result["checks"]]
        result = dict(result, exit=outcome, checks=checks)
        body = dumps(result)
    if len(body) > room and "returned" in result:
        result = dict(result, returned=too_large())
        body = dumps(result)
    return result, body
