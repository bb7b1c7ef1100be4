"""Claude Code in its own terminal, driven without a look at the screen.

    claude_terminal <attempt's folder> <program> [option ...]

The prompt goes in as one pasted line that names the task file, once Claude Code has said by a hook that its session has begun and has asked the terminal
for bracketed pasting. Its hooks say everything else too: that the prompt was taken, what it does, that it asks for something, that it is done. A
permission or question waits in its hook, so an answer from outside and one in the window end the same dialog. `sessions/<pid>.json` of its
configuration tells when a person has interrupted it, of which no hook speaks.

What the session says, word for word and with what its tools gave back, is copied from Claude Code's own file to `session.jsonl` in the attempt's folder.

On standard output it says, in JSON lines of the form that `claude -p` prints, how things are going: `system/init`, `assistant`, `result`; and beyond that
`waiting` {"ask": number, "text"} and `answered` {"answered": number}.

This file is pushed to nodes and runs on their own Python, 3.8 or newer, standard library only.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from typing import Any

from .files import write_atomic
from .terminal import Terminal
from .transcript import Transcript

LOOK_S = 0.5  # between two looks at the session's file
START_S = 90.0  # until the session begins; a loaded machine takes its time
PASTE_GAP_S = 0.15  # between the pasted text and Enter
CONFIRM_S = 15.0  # until the prompt is confirmed; then it is pasted once more
TRIES = 4
IDLE_S = 3.0  # it does nothing, and no hook has said why: somebody has interrupted it
LEAVE_GAP_S = 0.3  # between two Ctrl-C: both within a second or so end it
LEAVE_S = 6.0  # until it is ended by a signal
REPLY_S = 5.0  # until a hook that was to wait does wait
SCREEN_BYTES = 4096  # of the last that it drew, for a complaint before its session begins
TEXT_CHARACTERS_MAX = 2000
SESSION_FILE = "session.jsonl"
SESSION_BYTES_MAX = 64 << 20  # of one attempt; what comes after is in Claude Code's own file alone
SIGNAL_BASE = 128  # added to the signal that ended it, as a shell does
PASTING_ON = b"\x1b[?2004h"
KEY_FD = 9
KEY = "ANTHROPIC_API_KEY"
RETURN = "ORCHESTRA_RETURN"  # the file for what the attempt is to return, if it is to return something
HOOKS = ("SessionStart", "UserPromptSubmit", "PreToolUse", "Stop", "StopFailure", "SessionEnd")
ASKING = "PermissionRequest"
HOOK_SECONDS = 10
ASKING_SECONDS = 7 * 86_400  # longer than any attempt may take
HOOK_SCRIPT = """#!/bin/sh
# Tells the attempt what Claude Code says; with a second argument it waits for the reply.
place=$1/$$
cat >"$place.part" && mv "$place.part" "$place.json" || exit 0
[ -n "$2" ] && mkfifo "$place.reply"
echo "$$" 1<>"$1/bell"
[ -n "$2" ] && cat "$place.reply"
exit 0
"""
YES = ("yes", "y", "allow", "ok", "approve")
NO = ("no", "n", "deny")
TOLD_INPUTS = ("file_path", "command", "pattern", "path", "url", "query", "description", "prompt")
ESCAPES = re.compile(rb"\x1b(?:\[[0-9;?<>=]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][0-9A-Za-z]|[=>78cM])")


class Question:
    """Something that Claude Code waits for."""

    def __init__(self, number: int, text: str, hook: str = "", said: dict[str, Any] | None = None) -> None:
        self.number, self.text, self.hook = number, text, hook
        self.said = said or {}
        self.reply = -1  # the end of the pipe at which its hook waits
        self.due = time.monotonic() + REPLY_S


class Session:
    """One attempt: from the start of Claude Code to its end."""

    def __init__(self, folder: str, argv: list[str], listener: int = 0) -> None:
        self.folder, self.argv = folder, argv
        self.hooks = folder + "/hooks"
        self.terminal = Terminal(listener)
        self.terminal.on_drawn = self.on_drawn
        self.terminal.on_answer = self.on_answer
        self.screen = b""
        self.pasting = False
        self.session = ""
        self.transcript: Transcript | None = None
        self.kept = 0  # bytes of what its sessions said
        self.prompt = "Read the task file %s/prompt.txt and do what it says." % folder
        self.confirmed = False
        self.tries = 0
        self.enter_due = self.paste_due = 0.0
        self.began = time.monotonic()
        self.questions: list[Question] = []
        self.asked = 0
        self.told: Question | None = None  # the one that was told of
        self.idle_since = 0.0
        self.look_due = 0.0
        self.result: dict[str, Any] | None = None
        self.leaving_since = self.leave_due = 0.0

    # saying

    def say(self, kind: str, **fields: Any) -> None:
        """Prints one JSON line."""
        line = json.dumps(dict({"type": kind}, **fields, session_id=self.session), ensure_ascii=False) + "\n"
        data = line.encode("utf-8", "replace")
        while data:
            data = data[os.write(1, data) :]

    def end(self, text: str, **fields: Any) -> None:
        """What it has come to; the first word counts."""
        if self.result is None:
            self.result = dict({"result": text[:TEXT_CHARACTERS_MAX]}, **fields)

    def keep(self) -> None:
        """Copies what the session has said since."""
        news = self.transcript.news(SESSION_BYTES_MAX - self.kept) if self.transcript is not None else b""
        if not news:
            return
        self.kept += len(news)
        try:
            fd = os.open("%s/%s" % (self.folder, SESSION_FILE), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            while news:
                news = news[os.write(fd, news) :]
        except OSError:
            pass  # the disk is full, say
        finally:
            os.close(fd)

    # running

    def run(self) -> int:
        """Runs it to its end; returns the exit code."""
        bell = self.prepare()
        self.terminal.listen(bell, self.on_bell)
        environment = dict(os.environ)
        key = environment.pop(KEY, "")
        passed = -1
        if key:  # by a pipe: no dialog asks about it, no file holds a part of it, and no tool finds it in its environment
            passed, write_end = os.pipe()
            os.write(write_end, key.encode())
            os.close(write_end)
            os.dup2(passed, KEY_FD)
            environment["CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR"] = str(KEY_FD)
            os.close(passed)
            passed = KEY_FD
        self.terminal.start([*self.argv, "--settings", self.folder + "/settings.json"], environment, passed)
        if passed >= 0:
            os.close(passed)
        while self.terminal.status is None:
            self.terminal.turn(self.wait_s())
            self.look()
        self.terminal.finish()
        return self.conclude()

    def prepare(self) -> int:
        """Everything that Claude Code finds when it starts; returns the bell that its hooks ring."""
        os.mkdir(self.hooks, 0o700)
        script = self.hooks + "/hook.sh"
        with open(script, "w", encoding="utf-8") as out:
            out.write(HOOK_SCRIPT)
        os.chmod(script, 0o700)
        os.mkfifo(self.hooks + "/bell", 0o600)

        def hook(more: str, seconds: int) -> list[Any]:
            command = "%s %s%s" % (quoted(script), quoted(self.hooks), more)
            return [{"matcher": "*", "hooks": [{"type": "command", "command": command, "timeout": seconds}]}]

        hooks = {name: hook("", HOOK_SECONDS) for name in HOOKS}
        hooks[ASKING] = hook(" wait", ASKING_SECONDS)
        allowed = {"allow": ["Read(/%s/prompt.txt)" % self.folder]}  # one slash more: from the root of the file system
        if RETURN in os.environ:
            allowed["allow"].append("Edit(/%s)" % os.environ[RETURN])
        settings = {"hooks": hooks, "permissions": allowed, "skipDangerousModePermissionPrompt": True}
        with open(self.folder + "/settings.json", "w", encoding="utf-8") as out:
            json.dump(settings, out)
        self.trust()
        return os.open(self.hooks + "/bell", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def trust(self) -> None:
        """The working folder is trusted: a dialog would ask, whose first choice is to leave."""
        path = os.path.join(os.environ.get("CLAUDE_CONFIG_DIR", ""), ".claude.json")
        try:
            with open(path, encoding="utf-8") as file:
                known = json.load(file)
        except (OSError, ValueError):
            known = {}
        projects = known.setdefault("projects", {})
        for place in {os.getcwd(), os.environ.get("PWD", os.getcwd())}:
            projects.setdefault(place, {})["hasTrustDialogAccepted"] = True
        write_atomic(path, json.dumps(known).encode())

    def wait_s(self) -> float:
        """How long nothing has to be done."""
        moment = time.monotonic()
        dues = [due for due in (self.enter_due, self.paste_due, self.leave_due) if due]
        return max(0.0, min([LOOK_S, *(due - moment for due in dues)]))

    # hearing

    def on_drawn(self, data: bytes) -> None:
        """It has asked for bracketed pasting when its input is there."""
        self.screen = (self.screen + data)[-SCREEN_BYTES:]
        self.pasting = self.pasting or PASTING_ON in self.screen

    def on_bell(self, fd: int) -> None:
        """Hooks have something to say."""
        for name in os.read(fd, 4096).decode("ascii", "replace").split():
            path = "%s/%s.json" % (self.hooks, name)
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    said = json.load(file)
                os.unlink(path)
            except (OSError, ValueError):
                continue
            if isinstance(said, dict):
                self.on_hook(name, said)
        self.keep()

    def on_hook(self, name: str, said: dict[str, Any]) -> None:
        """What one hook says."""
        event = said.get("hook_event_name")
        if event == "SessionStart":
            self.on_session(said)
        elif event == "UserPromptSubmit":
            self.confirmed = True
            self.enter_due = self.paste_due = self.idle_since = 0.0
            self.drop("")
        elif event == "PreToolUse":
            self.on_tool(said)
        elif event == ASKING:
            self.asked += 1
            self.questions.append(Question(self.asked, question_of(said), name, said))
        elif event == "Stop" and self.confirmed:
            self.end(text_of(said.get("last_assistant_message")), subtype="success", is_error=False, terminal_reason="completed")
        elif event == "StopFailure":
            error = text_of(said.get("error")) or "unknown"
            text = text_of(said.get("last_assistant_message")) or error
            self.say("assistant", error=error, is_api_error_message=True, message={"content": [{"type": "text", "text": text}]})
            self.end(text, subtype="success", is_error=True, terminal_reason="api_error", api_error_status=status_in(text))

    def on_session(self, said: dict[str, Any]) -> None:
        """It is there. After a `/clear` in the window it is another session."""
        self.session = text_of(said.get("session_id"))
        if self.transcript is None or self.transcript.session != self.session:
            self.keep()
            self.transcript = Transcript(self.session, self.transcript)
        self.say("system", subtype="init", cwd=os.getcwd(), model=text_of(said.get("model")), source=text_of(said.get("source")))

    def on_tool(self, said: dict[str, Any]) -> None:
        """What it does now, unless it is known to wait: that would end the waiting."""
        self.idle_since = 0.0
        if self.told is None:
            given = said.get("tool_input")
            short = {name: text_of(value)[:200] for name, value in given.items()} if isinstance(given, dict) else {}
            block = {"type": "tool_use", "name": text_of(said.get("tool_name")), "input": short}
            self.say("assistant", message={"role": "assistant", "content": [block]})

    # looking

    def look(self) -> None:
        """Whatever is due now."""
        moment = time.monotonic()
        if self.terminal.stopping:
            self.leave(moment, signal.SIGTERM)
            return
        if self.result is not None:
            self.leave(moment, 0)
            return
        if not self.confirmed:
            self.deliver(moment)
        elif moment >= self.look_due:
            self.look_due = moment + LOOK_S
            self.look_idle(moment)
        self.look_questions(moment)

    def deliver(self, moment: float) -> None:
        """Pastes the prompt, presses Enter a moment later, and does both again if nobody confirms it."""
        if not self.session or not self.pasting:
            if moment - self.began > START_S:
                self.end("no session began within %d s; its window shows: %s" % (START_S, self.shown()), **NOT_DELIVERED)
        elif self.enter_due:
            if moment >= self.enter_due:
                self.enter_due = 0.0
                self.terminal.type(b"\r")
                self.paste_due = moment + CONFIRM_S
        elif moment >= self.paste_due:
            if self.tries and self.state() == "busy":
                self.paste_due = moment + CONFIRM_S  # it is at work: its hook is late
            elif self.tries == TRIES:
                self.end("the prompt was pasted %d times and never taken; its window shows: %s" % (TRIES, self.shown()), **NOT_DELIVERED)
            else:
                self.tries += 1
                self.terminal.type((b"\x15" if self.tries > 1 else b"") + pasted(self.prompt))
                self.enter_due = moment + PASTE_GAP_S

    def state(self) -> str:
        """`busy`, `idle` or `waiting`, by its own file."""
        place = "%s/sessions/%d.json" % (os.environ.get("CLAUDE_CONFIG_DIR", ""), self.terminal.pid)
        try:
            with open(place, encoding="utf-8") as file:
                return text_of(json.load(file).get("status"))
        except (OSError, ValueError, AttributeError):
            return ""

    def look_idle(self, moment: float) -> None:
        """Interrupted in its window, it waits for the next prompt, and no hook says so."""
        if self.state() != "idle":
            self.idle_since = 0.0
            self.drop("")
        elif not self.idle_since:
            self.idle_since = moment
        elif moment - self.idle_since > IDLE_S and not self.questions:
            self.asked += 1
            self.questions.append(Question(self.asked, "It was interrupted in its window. What shall it do next?"))

    def look_questions(self, moment: float) -> None:
        """Opens the pipes at which hooks wait, and tells of the first question that can be answered."""
        for question in list(self.questions):
            if question.hook and question.reply < 0:
                self.open_reply(question, moment)
        first = next((question for question in self.questions if question.reply >= 0 or not question.hook), None)
        if first is not self.told:
            if self.told is not None:
                self.say("answered", answered=self.told.number)
            self.told = first
            if first is not None:
                self.say("waiting", ask=first.number, text=first.text)

    def open_reply(self, question: Question, moment: float) -> None:
        """Once the hook reads, its end of the pipe tells that it is gone: the dialog was answered in the window."""
        try:
            question.reply = os.open("%s/%s.reply" % (self.hooks, question.hook), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            if moment > question.due:
                self.drop(question.hook)
            return
        self.terminal.handlers[question.reply] = lambda fd: self.drop(question.hook)
        self.terminal.poller.register(question.reply, 0)

    def drop(self, hook: str) -> None:
        """A question is asked no more. The empty hook is that of an interruption."""
        for question in [each for each in self.questions if each.hook == hook]:
            self.questions.remove(question)
            if question.reply >= 0:
                self.terminal.forget(question.reply)
                os.close(question.reply)
            if hook:
                try:
                    os.unlink("%s/%s.reply" % (self.hooks, hook))
                except FileNotFoundError:
                    pass  # the hook never came to make it

    # answering

    def on_answer(self, number: int, text: str) -> None:
        """The answer to a question, if that is asked still."""
        question = self.told
        if question is None or (number and question.number != number):
            return
        if question.hook:
            try:
                os.write(question.reply, json.dumps(reply_to(question.said, text.strip())).encode())
            except OSError:
                pass  # the hook has just gone: it was answered in the window
            self.drop(question.hook)
        else:
            self.terminal.type(b"\x15" + pasted(" ".join(text.split())))
            self.enter_due = time.monotonic() + PASTE_GAP_S
            self.confirmed, self.tries = False, 1
            self.prompt = " ".join(text.split())

    # leaving

    def leave(self, moment: float, number: int) -> None:
        """Asks it to go: by keys, then by a signal. A stop comes by a signal at once."""
        if not self.leaving_since:
            self.leaving_since = self.leave_due = moment
        if moment < self.leave_due:
            return
        self.leave_due = moment + LEAVE_GAP_S
        if number or moment - self.leaving_since > LEAVE_S:
            self.terminal.signal(number or signal.SIGTERM)
        else:
            self.terminal.type(b"\x03")

    def shown(self) -> str:
        """The last that it drew, as words."""
        return " ".join(ESCAPES.sub(b" ", self.screen).decode("utf-8", "replace").split())[-500:]

    def conclude(self) -> int:
        """The last line; the exit code says the same."""
        status = self.terminal.status or 0
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        how = "signal %d" % number if number else "exit code %s" % code
        if self.told is not None:
            self.say("answered", answered=self.told.number)
        if not self.session:
            os.write(2, ("%s\n" % self.shown()).encode("utf-8", "replace"))
            return SIGNAL_BASE + number if number else code or 1
        ended = {
            "subtype": "error_during_execution",
            "is_error": True,
            "terminal_reason": "closed",
            "exit_code": code,
            "exit_signal": number,
        }
        self.end("it was closed before it was done (%s)" % how, **ended)
        self.keep()
        if self.transcript is not None and self.result is not None:
            if self.result.get("terminal_reason") == "api_error":
                self.result.update(self.transcript.failure())
            self.result.update(self.transcript.consumed())
        self.say("result", **(self.result or {}))
        return 1 if self.result is None or self.result["is_error"] else 0


NOT_DELIVERED: dict[str, Any] = {"subtype": "error_during_execution", "is_error": True, "terminal_reason": "not_delivered"}


def quoted(text: str) -> str:
    """A word for the shell."""
    return "'%s'" % text.replace("'", "'\\''")


def pasted(text: str) -> bytes:
    """Text as a paste that the program can tell from typing."""
    return b"\x1b[200~" + text.replace("\x1b", "").encode("utf-8", "replace") + b"\x1b[201~"


def text_of(value: Any) -> str:
    """A text, or nothing."""
    return value[:TEXT_CHARACTERS_MAX] if isinstance(value, str) else ""


def status_in(text: str) -> int | None:
    """The HTTP status in the words for an API error."""
    found = re.search(r"API Error: ([45][0-9]{2})\b", text)
    return int(found.group(1)) if found else None


def questions_in(said: dict[str, Any]) -> list[dict[str, Any]]:
    """The questions of the tool that asks some."""
    given = said.get("tool_input")
    found = given.get("questions") if said.get("tool_name") == "AskUserQuestion" and isinstance(given, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def question_of(said: dict[str, Any]) -> str:
    """A request for permission, or questions, in words."""
    asked = questions_in(said)
    if asked:
        parts = []
        for each in asked:
            options = each.get("options")
            labels = [text_of(one.get("label")) for one in options if isinstance(one, dict)] if isinstance(options, list) else []
            parts.append(text_of(each.get("question")) + (" (%s)" % " / ".join(labels) if labels else ""))
        return " ".join(parts)[:TEXT_CHARACTERS_MAX]
    given = said.get("tool_input")
    what = next((text_of(given[name]) for name in TOLD_INPUTS if isinstance(given.get(name), str)), "") if isinstance(given, dict) else ""
    return ("May it use %s? %s" % (text_of(said.get("tool_name")), " ".join(what.split()))).strip()[:TEXT_CHARACTERS_MAX]


def reply_to(said: dict[str, Any], text: str) -> dict[str, Any]:
    """The hook's own answer: to questions the text, to a request for permission yes, no, or no for the reason that the text gives."""
    asked = questions_in(said)
    decision: dict[str, Any]
    if asked:
        answers = {text_of(each.get("question")): text for each in asked}
        decision = {"behavior": "allow", "updatedInput": dict(said["tool_input"], answers=answers)}
    elif text.lower() in YES:
        decision = {"behavior": "allow"}
    else:
        decision = {"behavior": "deny", "message": "refused" if text.lower() in NO else text}
    return {"hookSpecificOutput": {"hookEventName": ASKING, "decision": decision}}


def main(argv: list[str]) -> int:
    """`<attempt's folder> <program> [option ...]`."""
    if len(argv) < 2:
        os.write(2, b"usage: claude_terminal <attempt's folder> <program> [option ...]\n")
        return 2
    return Session(argv[0].rstrip("/"), argv[1:]).run()
