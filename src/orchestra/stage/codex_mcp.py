"""Codex as an MCP server: one call of the tool `codex` of `codex mcp-server`, which programs before 0.154.0 have.

    codex_mcp <prompt file> <the tool's arguments as JSON> <program> [argument ...]

On standard output it says, in JSON lines of the form that `codex exec --json` prints, how things are going. A thread of that server ends with it, so none is named
and nothing can be gone on with. A newer program is refused with exit code 2 before anything is asked of it.

This file is pushed to nodes and runs on their own Python, 3.8 or newer, standard library only.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from typing import Any

from .codex_server import INTERRUPT_S, INTERRUPTED, METHOD_NOT_FOUND, Server, Thread, dict_in, snake

PROTOCOL = "2025-06-18"
REMOVED_IN = (0, 154, 0)
LAST_WITH = "0.153.4"
VERSION_S = 30.0
VERSION = re.compile(rb"(\d+)\.(\d+)\.(\d+)")


class McpServer(Server):
    """The other end, which wants to be told the version of JSON-RPC."""

    def send(self, line: dict[str, Any]) -> None:
        super().send(dict({"jsonrpc": "2.0"}, **line))


class Call(Thread):
    """One attempt: the call, and the events that come while it lasts."""

    name = "codex mcp-server"

    def __init__(self, server: Server, prompt: str, options: dict[str, Any]) -> None:
        super().__init__(server, prompt, options)
        self.call = 0  # the request that is the call, once it is made

    def greet(self) -> None:
        self.server.ask("initialize", protocolVersion=PROTOCOL, capabilities={}, clientInfo={"name": "orchestra", "version": "1"})

    def stop(self) -> None:
        """Cancels the call; the server is closed when it says that it is, or does not say so in time."""
        if self.call and not self.interrupted:
            self.interrupted = True
            self.server.send({"method": "notifications/cancelled", "params": {"requestId": self.call, "reason": "stopped"}})
        elif not self.call or time.monotonic() - self.stopping > INTERRUPT_S:
            self.fail(INTERRUPTED)

    def on_reply(self, asked: str, line: dict[str, Any]) -> None:
        """An answer to a request of ours: each begins the next step, and the last one is the end."""
        error, result = line.get("error"), line.get("result")
        if isinstance(error, dict):
            self.fail("%s: %s" % (asked, error.get("message")))
        elif not isinstance(result, dict):
            return
        elif asked == "initialize":
            self.server.send({"method": "notifications/initialized"})
            arguments = dict(self.options, prompt=self.prompt, cwd=os.getcwd())
            self.server.ask("tools/call", name="codex", arguments=arguments)
            self.call = self.server.number
        elif asked == "tools/call" and result.get("isError"):
            self.fail(texts_in(result.get("content")) or "the call failed")
        elif asked == "tools/call":
            self.say("turn.completed", usage=self.usage)
            self.over = True

    def on_news(self, method: str, params: dict[str, Any]) -> None:
        """An event. Those of other threads are of sub-agents, whose words are no end."""
        message, thread = dict_in(params, "msg"), dict_in(params, "_meta").get("threadId")
        kind = message.get("type")
        if method != "codex/event" or (self.thread and thread not in (None, self.thread)):
            return
        if kind == "session_configured":
            self.thread = str(thread or message.get("session_id"))
            self.say("thread.started")
        elif kind == "task_started":
            self.say("turn.started")
        elif kind in ("item_started", "item_completed"):
            item = item_of(dict_in(message, "item"))
            if item is not None:
                self.say(kind.replace("_", "."), item=item)
        elif kind == "raw_response_completed":  # while its tools still run
            spent = counts_in(dict_in(message, "token_usage"))
            self.usage = {name: self.usage.get(name, 0) + count for name, count in spent.items()} or self.usage
        elif kind == "token_count":
            self.usage = counts_in(dict_in(dict_in(message, "info"), "total_token_usage")) or self.usage
        elif kind in ("error", "stream_error"):
            self.say("error", message=str(message.get("message")))
        elif kind == "turn_aborted":
            self.fail(INTERRUPTED)

    def on_request(self, number: Any, method: str, params: dict[str, Any]) -> None:
        """Nothing that it could want: it is told never to ask."""
        self.server.send({"id": number, "error": {"code": METHOD_NOT_FOUND, "message": "nobody here can do %s" % method}})


def counts_in(values: dict[str, Any]) -> dict[str, int]:
    """The whole numbers of an object."""
    return {name: count for name, count in values.items() if isinstance(count, int)}


def texts_in(content: Any) -> str:
    """The texts of a list of content blocks."""
    blocks = content if isinstance(content, list) else []
    return "\n".join(each["text"] for each in blocks if isinstance(each, dict) and isinstance(each.get("text"), str))


def item_of(item: dict[str, Any]) -> dict[str, Any] | None:
    """An item as `codex exec` prints it; None for what it does not print."""
    kind = item.get("type")
    if kind in ("UserMessage", "HookPrompt") or not isinstance(kind, str):
        return None
    told: dict[str, Any] = {"id": item.get("id"), "type": snake(kind)}
    if kind == "AgentMessage":
        told["text"] = texts_in(item.get("content"))
    elif kind == "Reasoning":
        summary = item.get("summary_text")
        told["text"] = "\n".join(each for each in summary if isinstance(each, str)) if isinstance(summary, list) else ""
    elif kind == "FileChange":
        told["changes"] = [{"path": path, "kind": change.get("type")} for path, change in dict_in(item, "changes").items()]
        told["status"] = item.get("status")
    else:
        for name in ("text", "command", "aggregated_output", "exit_code", "status", "server", "tool", "query", "path"):
            if item.get(name) is not None:
                told[name] = item[name]
        command = told.get("command")
        if isinstance(command, list):
            told["command"] = " ".join(shlex.quote(str(word)) for word in command)
    return told


def too_new(program: str) -> str:
    """What is wrong with the program's version, and what to do about it; empty if nothing is, or it does not tell its version."""
    done = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=VERSION_S, check=False)
    found = VERSION.search(done.stdout)
    if found is None or tuple(map(int, found.groups())) < REMOVED_IN:
        return ""
    return ("codex %s has no MCP server (removed in %s): set kinds.codex.mode to interactive, or install @openai/codex@%s") % (
        found.group().decode(),
        ".".join(map(str, REMOVED_IN)),
        LAST_WITH,
    )


def main(argv: list[str]) -> int:
    """`<prompt file> <the tool's arguments as JSON> <program> [argument ...]`."""
    if len(argv) < 3:
        os.write(2, b"usage: codex_mcp <prompt file> <the tool's arguments as JSON> <program> [argument ...]\n")
        return 2
    with open(argv[0], encoding="utf-8", errors="replace") as file:
        prompt = file.read()
    try:
        wrong = too_new(argv[2])
        if wrong:
            os.write(2, wrong.encode() + b"\n")
            return 2
        server = McpServer(argv[2:])
    except (OSError, subprocess.TimeoutExpired) as problem:
        os.write(2, ("cannot start %s: %s\n" % (argv[2], problem)).encode())
        return 127
    return Call(server, prompt, json.loads(argv[1])).run()
