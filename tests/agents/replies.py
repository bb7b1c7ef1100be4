"""What the model says in each scene: fixtures of the fake model server, found by a word in the prompt.

A fake answers at once and does as it is told. Nothing here says how good a model is; it says what the CLIs do around one.
"""

from __future__ import annotations

import json
from typing import Any, Final

from tests.scenes import CLASH, FAULTS, MODES, Fault, own_word

USAGE: Final = {"input_tokens": 1000, "output_tokens": 500, "prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
TELL_KEYS: Final = "env | grep -c dummy-key > count.txt"
COLOUR: Final = [
    {
        "question": "Which colour?",
        "header": "Colour",
        "multiSelect": False,
        "options": [{"label": "red", "description": "like fire"}, {"label": "blue", "description": "like water"}],
    }
]
SPY: Final = """
C=$(git rev-parse --git-common-dir)
for file in "$HOME/.ssh/id_ed25519" "$C/../.codex/ledger/ledger.db" "$C/../.codex/config/orchestra.yaml"; do
    if test -e "$file"; then basename "$file" >> seen.txt; fi
done
echo mine > mine.txt; git add mine.txt; git -c user.name=a -c user.email=a@x commit -qm 'by the agent'; echo on > left.txt
"""
"""Looks for what is not its own, commits one file, and leaves another."""
WAIT_LOOP: Final = "echo $$ > pid; while :; do sleep 0.2; done"
WAIT_GO: Final = "test -e who.txt || { touch begun; until test -e go; do sleep 0.05; done; rm begun go; }"
PLANNED: Final = {"tasks": [{"id": "greet", "run": "echo hello > planned.txt", "success_criteria": ["File exists: planned.txt"]}]}
RETURN_PLAN: Final = f"cat > $ORCHESTRA_RETURN <<'END'\n{json.dumps(PLANNED)}\nEND"
CONFINED: Final = f"""{RETURN_PLAN}
if touch "$CODEX_HOME/outside.txt"; then echo not confined > "$ORCHESTRA_RETURN"; fi"""
"""Returns a plan, unless it can write where a sandbox of its own should not let it."""
OUTSIDE: Final = 'touch "${CODEX_HOME:-$CLAUDE_CONFIG_DIR}/outside.txt"'
"""What must not be let do unasked who works among others' files."""
HANDED_IN: Final = "../attempts/demo/SCENE-CLAUDE-RETURN/1/return/answer.json"
"""Seen from a folder beside those of the attempts."""
RETURN_JUDGED: Final = """test -s hello.txt && cat > $ORCHESTRA_RETURN <<'END'
{"verdict": "approve", "summary": "It greets.", "criteria": [{"number": 1, "met": true, "evidence": "hello.txt says hello."}]}
END"""
RETURN_REVIEW: Final = """test -s planned.txt && echo '{"verdict": "approve", "summary": "It greets."}' > $ORCHESTRA_RETURN"""


def says(word: str, text: str, **match: Any) -> dict[str, Any]:
    return {"match": {"userMessage": word, **match}, "response": {"content": text, "usage": USAGE}}


def calls(word: str, tool: str, arguments: dict[str, Any], **match: Any) -> dict[str, Any]:
    return {
        "match": {"userMessage": word, **match},
        "response": {"toolCalls": [{"name": tool, "arguments": arguments}], "usage": USAGE},
    }


def fails(word: str, status: int, kind: str, message: str, *, retry_after: int | None = None, **match: Any) -> dict[str, Any]:
    wait = {} if retry_after is None else {"retryAfter": retry_after}
    error = {"message": message, "type": kind, **({"code": kind} if kind == "insufficient_quota" else {})}
    return {"match": {"userMessage": word, **match}, "response": {"error": error, "status": status, **wait}}


def faults(word: str, fault: Fault) -> list[dict[str, Any]]:
    """A scene in which the API fails; one that passes does so once for each mode, as the server counts what it served."""
    words = [own_word(word, mode) for mode in MODES] if fault.times else [word]
    found = []
    for each in words:
        match = {"sequenceIndex": 0} if fault.times else {}
        if fault.cut:
            found.append({**says(each, LONG, **match), "truncateAfterChunks": 2})
        else:
            found.append(fails(each, fault.status, fault.kind, fault.message, retry_after=fault.retry_after, **match))
        if fault.times:
            found.append(says(each, "Done after all."))
    return found


def tool_scene(word: str, tool: str, arguments: dict[str, Any], end: str) -> list[dict[str, Any]]:
    """One tool call, then a last word."""
    return [calls(word, tool, arguments, hasToolResult=False), says(word, end, hasToolResult=True)]


LONG: Final = "This is a long text that is cut somewhere in the midst of it, and never comes to its end."
PATCH = "apply_patch <<'EOF'\n*** Begin Patch\n*** Add File: hello.txt\n+hello\n*** End Patch\nEOF\n"

FIXTURES: Final[list[dict[str, Any]]] = [
    # Whatever the CLI
    fails("SCENE-LIMITED-ONCE", 429, "rate_limit_error", "slow down", retry_after=1, sequenceIndex=0),
    says("SCENE-LIMITED-ONCE", "Done after the wait."),
    *(
        reply
        for word in ("SCENE-CLAUDE-PASSING", "SCENE-CODEX-PASSING")
        for reply in (
            fails(word, 429, "rate_limit_error", "slow down", retry_after=1, sequenceIndex=0),
            says(word, "Done after the wait."),
        )
    ),
    fails("SCENE-CODEX-LIMITED-ONCE", 429, "rate_limit_error", "slow down", retry_after=1, sequenceIndex=0),
    says("SCENE-CODEX-LIMITED-ONCE", "Done after the wait."),
    *(fixture for word, fault in FAULTS.items() for fixture in faults(word, fault)),
    {"match": {"userMessage": "SCENE-REFUSAL"}, "response": {"content": "", "finishReason": "refusal"}},
    says("SCENE-SAY", "Said."),
    {**says("SCENE-SLOW", "word " * 30), "latency": 100, "chunkSize": 5},
    # Claude Code
    *tool_scene("Judge whether the work meets its criteria", "Bash", {"command": RETURN_JUDGED, "description": "Judge"}, "Judged."),
    *tool_scene("SCENE-CLAUDE-WRITE", "Write", {"file_path": "hello.txt", "content": "hello\n"}, "I wrote hello.txt."),
    *tool_scene("SCENE-CLAUDE-KEYS", "Bash", {"command": TELL_KEYS, "description": "Count"}, "Counted."),
    *tool_scene("SCENE-CLAUDE-SPY", "Bash", {"command": SPY, "description": "Look"}, "Looked."),
    *tool_scene("SCENE-CLAUDE-DENIED", "Write", {"file_path": "hello.txt", "content": "hello\n"}, "I was not allowed to."),
    *tool_scene("SCENE-CLAUDE-PLAN", "Bash", {"command": RETURN_PLAN, "description": "Return the plan"}, "Planned."),
    *tool_scene("SCENE-CLAUDE-REVIEW", "Bash", {"command": RETURN_REVIEW, "description": "Return the review"}, "Reviewed."),
    calls("SCENE-CLAUDE-TURNS", "Bash", {"command": "echo again", "description": "Say again"}),
    *tool_scene("SCENE-CLAUDE-READ", "Read", {"file_path": "../prompt.txt"}, "I know what to do."),
    *tool_scene("SCENE-CLAUDE-ASK", "AskUserQuestion", {"questions": COLOUR}, "Thank you."),
    *tool_scene("SCENE-CLAUDE-MCP", "mcp__greeter__greet", {"name": "orchestra"}, "I greeted."),
    fails("SCENE-CLAUDE-FALLBACK", 529, "overloaded_error", "Overloaded", model="claude-opus-5-5"),
    says("SCENE-CLAUDE-FALLBACK", "Said by the other one."),
    calls("SCENE-CLAUDE-WAIT", "Bash", {"command": WAIT_LOOP, "description": "Wait"}),
    *tool_scene("SCENE-CLAUDE-SHARED", "Bash", {"command": OUTSIDE, "description": "Write"}, "I tried."),
    *tool_scene("SCENE-CLAUDE-RETURN", "Write", {"file_path": HANDED_IN, "content": json.dumps(PLANNED)}, "Planned."),
    *tool_scene("SCENE-CLAUDE-MISSPELL", "Write", {"file_path": "hello.txt", "content": "helo\n"}, "I wrote hello.txt."),
    *tool_scene("SCENE-CLAUDE-CLASH", "Bash", {"command": f"{WAIT_GO}; {CLASH}", "description": "Say who it was"}, "I said so."),
    # Codex
    *tool_scene("SCENE-CODEX-SHARED", "exec_command", {"cmd": f"echo hello > hello.txt; {OUTSIDE}"}, "I wrote hello.txt."),
    *tool_scene("SCENE-CODEX-KEYS", "exec_command", {"cmd": TELL_KEYS}, "Counted."),
    *tool_scene("SCENE-CODEX-WRITE", "exec_command", {"cmd": "echo hello > hello.txt"}, "I wrote hello.txt."),
    *tool_scene("SCENE-CODEX-PATCH", "exec_command", {"cmd": PATCH}, "I patched hello.txt."),
    *tool_scene("SCENE-CODEX-SPY", "exec_command", {"cmd": SPY}, "Looked."),
    calls("SCENE-CODEX-TURNS", "exec_command", {"cmd": "echo again"}),
    *tool_scene("SCENE-CODEX-DENIED", "exec_command", {"cmd": "echo hello > hello.txt"}, "I was not allowed to."),
    *tool_scene("SCENE-CODEX-CONFINED", "exec_command", {"cmd": CONFINED}, "Planned."),
    *tool_scene("SCENE-CODEX-REVIEW", "exec_command", {"cmd": RETURN_REVIEW}, "Reviewed."),
    *tool_scene("SCENE-CODEX-ASK", "request_user_input", {"questions": [{"id": "colour", **COLOUR[0]}]}, "Thank you."),
    calls("SCENE-CODEX-WAIT", "exec_command", {"cmd": WAIT_LOOP}, hasToolResult=False),
    calls("SCENE-CODEX-WAIT", "write_stdin", {"session_id": 1, "chars": ""}, hasToolResult=True),
    *tool_scene("SCENE-CODEX-MISSPELL", "exec_command", {"cmd": "echo helo > hello.txt"}, "I wrote hello.txt."),
    *tool_scene("SCENE-CODEX-CLASH", "exec_command", {"cmd": f"{WAIT_GO}; {CLASH}"}, "I said so."),
    # The others
    *tool_scene("SCENE-OPENCODE-WRITE", "write", {"filePath": "hello.txt", "content": "hello\n"}, "I wrote hello.txt."),
    *tool_scene("SCENE-GEMINI-WRITE", "write_file", {"file_path": "hello.txt", "content": "hello\n"}, "I wrote hello.txt."),
    calls("SCENE-MINI-WRITE", "bash", {"command": "echo hello > hello.txt"}, hasToolResult=False),
    calls("SCENE-MINI-WRITE", "bash", {"command": "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"}, hasToolResult=True),
    says("SCENE-AIDER-WRITE", "Here it is.\n\nhello.txt\n```\nhello\n```\n"),
]
