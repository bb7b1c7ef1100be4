"""Codex as a server: JSON-RPC lines with `codex app-server`, for one thread and its turns.

    codex_server <prompt file> <thread's options as JSON> <program> [argument ...]

On standard output it says, in JSON lines of the form that `codex exec --json` prints, how things are going, and beyond that
`waiting` {"ask": number, "text"} and `answered` {"answered": number}. Standard input is what a person types, or answers from elsewhere, a line each: the reply
to what is asked, or else words that are added to the running turn.

This file is pushed to nodes and runs on their own Python, 3.8 or newer, standard library only.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from typing import Any

READ_BYTES = 65536
RETURN = "ORCHESTRA_RETURN"  # the file for what the attempt is to return, if it is to return something
LEAVE_S = 3.0  # for the server to end once its input is closed
INTERRUPT_S = 1.0  # for a turn to end once it is interrupted
TEXT_CHARACTERS_MAX = 2000
YES = ("yes", "y", "allow", "ok", "approve")
ALWAYS = ("always", "session")
NO = ("no", "n", "deny")
INTERRUPTED = "interrupted"  # also what the server says of such a turn
METHOD_NOT_FOUND = -32601
QUESTIONS = "item/tool/requestUserInput"
PERMISSIONS = "item/permissions/requestApproval"
FORM = "mcpServer/elicitation/request"
APPROVALS = ("item/commandExecution/requestApproval", "item/fileChange/requestApproval")
WORD = re.compile("(?<=[a-z])([A-Z])")


class Failed(Exception):
    """The server cannot go on with us."""


class Server:
    """The other end."""

    def __init__(self, argv: list[str]) -> None:
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self.process.stdin is None or self.process.stdout is None:
            raise Failed("the server has no pipes")
        self.input, self.output = self.process.stdin, self.process.stdout.fileno()
        self.number = 0
        self.rest = b""
        self.wanted: dict[int, str] = {}  # requests of ours that are not answered

    def send(self, line: dict[str, Any]) -> None:
        """Writes one line; that it is gone is seen where it is read."""
        try:
            self.input.write(json.dumps(line).encode() + b"\n")
            self.input.flush()
        except OSError:
            pass

    def ask(self, method: str, **params: Any) -> None:
        """A request; what comes back is heard later."""
        self.number += 1
        self.wanted[self.number] = method
        self.send({"id": self.number, "method": method, "params": params})

    def read(self) -> list[dict[str, Any]] | None:
        """What it has said; None when it is gone."""
        data = os.read(self.output, READ_BYTES)
        if not data:
            return None
        *lines, self.rest = (self.rest + data).split(b"\n")
        found = []
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                continue
            if isinstance(said, dict):
                found.append(said)
        return found

    def close(self) -> int:
        """Lets it end; returns its exit code."""
        try:
            self.input.close()
        except OSError:
            pass
        try:
            return self.process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            return self.process.wait()


class Thread:
    """One attempt: a thread, its turn, and whoever answers."""

    name = "codex app-server"

    def __init__(self, server: Server, prompt: str, options: dict[str, Any]) -> None:
        self.server, self.prompt, self.options = server, prompt, options
        self.thread = self.turn = ""
        self.returns = os.path.dirname(os.environ.get(RETURN, ""))  # outside of what Codex's own sandbox lets it write by itself
        self.usage: dict[str, int] = {}
        self.questions: list[tuple[int, dict[str, Any]]] = []
        self.asked = self.told = 0
        self.over: bool | None = None  # whether it went well, once it is over
        self.stopping = 0.0
        self.interrupted = False
        self.typed = b""

    # saying

    def say(self, kind: str, **fields: Any) -> None:
        """Prints one JSON line."""
        data = json.dumps(dict({"type": kind}, **fields), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        while data:
            data = data[os.write(1, data) :]

    def fail(self, message: str, **more: Any) -> None:
        """The turn did not go well."""
        self.say("turn.failed", error={"message": message[:TEXT_CHARACTERS_MAX]}, usage=self.usage, **more)
        self.over = False

    # running

    def run(self) -> int:
        """Runs it to its end; returns the exit code."""
        wake = self.catch_stop()
        self.greet()
        poller = select.poll()
        for fd in (self.server.output, 0, wake):
            poller.register(fd, select.POLLIN)
        while self.over is None:
            for fd, _ in poller.poll(200 if self.stopping else None):
                if fd == wake:
                    os.read(wake, 512)
                elif fd == 0 and not self.on_typed():
                    poller.unregister(0)
                elif fd == self.server.output:
                    self.hear()
            if self.stopping and self.over is None:
                self.stop()
        code = self.server.close()
        return 0 if self.over and code == 0 else 1

    def greet(self) -> None:
        """The first request."""
        self.server.ask(
            "initialize", clientInfo={"name": "orchestra", "title": "Orchestra", "version": "1"}, capabilities={"experimentalApi": True}
        )

    def catch_stop(self) -> int:
        """A stop, or Ctrl-C in the window, is taken note of; returns what can be read then."""

        def note(_number: int, _frame: object) -> None:
            self.stopping = self.stopping or time.monotonic()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, note)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        return read_end

    def stop(self) -> None:
        """Interrupts the turn; what does not end by that is left to end with its server."""
        if self.turn and not self.interrupted:
            self.interrupted = True
            self.server.ask("turn/interrupt", threadId=self.thread, turnId=self.turn)
        elif not self.turn or time.monotonic() - self.stopping > INTERRUPT_S:
            self.fail(INTERRUPTED)

    def hear(self) -> None:
        """Everything that the server has said."""
        lines = self.server.read()
        if lines is None:
            self.on_gone(self.server.process.wait())
            return
        for line in lines:
            method, params = line.get("method"), line.get("params")
            if isinstance(method, str) and "id" in line:
                self.on_request(line["id"], method, params if isinstance(params, dict) else {})
            elif isinstance(method, str):
                self.on_news(method, params if isinstance(params, dict) else {})
            else:
                self.on_reply(self.server.wanted.pop(line.get("id", 0), ""), line)
            if self.over is not None:
                return

    def on_gone(self, status: int) -> None:
        """The server ended while something was expected of it."""
        code, number = (None, -status) if status < 0 else (status, None)
        how = "signal %d" % number if number else "exit code %s" % code
        self.fail("%s ended (%s)" % (self.name, how), exit_code=code, exit_signal=number)

    # replies

    def on_reply(self, asked: str, line: dict[str, Any]) -> None:
        """An answer to a request of ours; each begins the next step."""
        error, result = line.get("error"), line.get("result")
        if isinstance(error, dict):
            if asked not in ("turn/steer", "turn/interrupt"):
                self.fail("%s: %s" % (asked, error.get("message")))
        elif not isinstance(result, dict):
            return
        elif asked == "initialize":
            self.server.send({"method": "initialized", "params": {}})
            more = {"config": {"sandbox_workspace_write": {"writable_roots": [self.returns]}}} if self.returns else {}
            self.server.ask("thread/resume" if "threadId" in self.options else "thread/start", cwd=os.getcwd(), **self.options, **more)
        elif asked in ("thread/start", "thread/resume"):
            self.thread = str(dict_in(result, "thread").get("id"))
            self.say("thread.started", thread_id=self.thread)
            self.server.ask("turn/start", threadId=self.thread, input=[{"type": "text", "text": self.prompt}])
        elif asked == "turn/start":
            self.turn = str(dict_in(result, "turn").get("id"))

    # news

    def on_news(self, method: str, params: dict[str, Any]) -> None:
        """A notification. Those of other threads are of sub-agents, whose words are no end."""
        if params.get("threadId") not in (None, self.thread):
            return
        if method == "turn/started":
            self.turn = str(dict_in(params, "turn").get("id"))
            self.say("turn.started")
        elif method in ("item/started", "item/completed"):
            item = item_of(dict_in(params, "item"))
            if item is not None:
                # While something is asked, this is no sign that it goes on.
                self.say("note" if self.told else method.replace("/", "."), item=item)
        elif method == "thread/tokenUsage/updated":
            total = dict_in(dict_in(params, "tokenUsage"), "total")
            self.usage = {snake(name): count for name, count in total.items() if isinstance(count, int)}
        elif method == "error":
            error = dict_in(params, "error")
            details = error.get("additionalDetails")  # what it waits for; `codex exec` prints it so
            self.say("error", message="%s (%s)" % (error.get("message"), details) if details else str(error.get("message")))
        elif method == "turn/completed":
            self.on_end(dict_in(params, "turn"))

    def on_end(self, turn: dict[str, Any]) -> None:
        """How the turn ended; nothing is asked any more."""
        self.questions.clear()
        self.ask_next()
        if turn.get("status") == "completed":
            self.say("turn.completed", usage=self.usage)
            self.over = True
        else:
            self.fail(str(dict_in(turn, "error").get("message") or turn.get("status")))

    # questions

    def on_request(self, number: Any, method: str, params: dict[str, Any]) -> None:
        """Something that the server wants to know."""
        if method not in (QUESTIONS, PERMISSIONS, FORM, *APPROVALS):
            self.server.send({"id": number, "error": {"code": METHOD_NOT_FOUND, "message": "nobody here can do %s" % method}})
            return
        self.asked += 1
        self.questions.append((self.asked, {"id": number, "method": method, "params": params}))
        self.ask_next()

    def ask_next(self) -> None:
        """Tells which question is open now."""
        first = self.questions[0][0] if self.questions else 0
        if first == self.told:
            return
        if self.told:
            self.say("answered", answered=self.told)
        self.told = first
        if first:
            self.say("waiting", ask=first, text=question_of(self.questions[0][1]))

    def on_typed(self) -> bool:
        """Lines from the window, or from elsewhere. False when there are no more."""
        data = os.read(0, READ_BYTES)
        *lines, self.typed = (self.typed + data).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace").strip()
            if text:
                self.take(text)
        return bool(data)

    def take(self, text: str) -> None:
        """An answer, or words for the running turn."""
        if self.questions:
            _, request = self.questions.pop(0)
            self.server.send({"id": request["id"], "result": answer_to(request, text)})
            if request["method"] != QUESTIONS and text.lower() not in (*YES, *ALWAYS, *NO):
                self.steer(text)  # why it was refused
            self.ask_next()
        else:
            self.steer(text)

    def steer(self, text: str) -> None:
        """Adds words to the running turn."""
        if self.turn:
            self.server.ask("turn/steer", threadId=self.thread, expectedTurnId=self.turn, input=[{"type": "text", "text": text}])


def dict_in(values: dict[str, Any], name: str) -> dict[str, Any]:
    """An object in an object, or an empty one."""
    found = values.get(name)
    return found if isinstance(found, dict) else {}


def snake(name: str) -> str:
    """A name as `codex exec` writes it."""
    return WORD.sub(r"_\1", name).lower()


def item_of(item: dict[str, Any]) -> dict[str, Any] | None:
    """An item as `codex exec` prints it; None for what it does not print."""
    kind = item.get("type")
    if kind in ("userMessage", "hookPrompt") or not isinstance(kind, str):
        return None
    told: dict[str, Any] = {"id": item.get("id"), "type": snake(kind)}
    if kind == "fileChange":
        changes = item.get("changes")
        told["changes"] = [
            {"path": each.get("path"), "kind": dict_in(each, "kind").get("type")} for each in changes or [] if isinstance(each, dict)
        ]
        told["status"] = item.get("status")
    elif kind == "reasoning":
        summary = item.get("summary")
        told["text"] = "\n".join(each for each in summary if isinstance(each, str)) if isinstance(summary, list) else ""
    else:
        for name in ("text", "command", "aggregatedOutput", "exitCode", "status", "server", "tool", "query", "path"):
            if item.get(name) is not None:
                told[snake(name)] = item[name]
    return told


def question_of(request: dict[str, Any]) -> str:
    """What is asked, in words."""
    params = request["params"]
    method = request["method"]
    if method == QUESTIONS:
        parts = []
        for each in params.get("questions") or []:
            labels = [str(one.get("label")) for one in each.get("options") or []]
            parts.append(str(each.get("question")) + (" (%s)" % " / ".join(labels) if labels else ""))
        text = " ".join(parts)
    elif method == FORM:
        text = "%s asks: %s" % (params.get("serverName") or "An MCP server", params.get("message"))
    else:
        what = {APPROVALS[0]: "May it run: %s" % params.get("command"), APPROVALS[1]: "May it change files?"}
        reason = str(params.get("reason") or "")
        text = what.get(method, "May it have more permissions: %s" % json.dumps(params.get("permissions"))) + (
            " (%s)" % reason if reason else ""
        )
    return text[:TEXT_CHARACTERS_MAX]


def answer_to(request: dict[str, Any], text: str) -> dict[str, Any]:
    """The reply to what is asked: yes, always, no, or words."""
    method, params, word = request["method"], request["params"], text.lower()
    if method == QUESTIONS:
        return {"answers": {str(each.get("id")): {"answers": [text]} for each in params.get("questions") or []}}
    agreed = word in YES or word in ALWAYS
    if method == FORM:
        return {"action": "accept", "content": {}} if agreed else {"action": "decline"}
    if method == PERMISSIONS:
        return {"permissions": params.get("permissions") if agreed else {}, "scope": "session" if word in ALWAYS else "turn"}
    return {"decision": "acceptForSession" if word in ALWAYS else "accept" if agreed else "decline"}


def main(argv: list[str]) -> int:
    """`<prompt file> <thread's options as JSON> <program> [argument ...]`."""
    if len(argv) < 3:
        os.write(2, b"usage: codex_server <prompt file> <thread's options as JSON> <program> [argument ...]\n")
        return 2
    with open(argv[0], encoding="utf-8", errors="replace") as file:
        prompt = file.read()
    try:
        server = Server(argv[2:])
    except OSError as problem:
        os.write(2, ("cannot start %s: %s\n" % (argv[2], problem.strerror)).encode())
        return 127
    return Thread(server, prompt, json.loads(argv[1])).run()
