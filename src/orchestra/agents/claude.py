"""Kind `claude`: Claude Code. Headless, the prompt goes in by standard input, JSON lines come out, the last of type `result` says how it went.
In mode `interactive` it runs in a terminal of its own (`stage/claude_terminal.py`), from which the same lines come.

Each agent has a configuration folder of its own, and a runtime folder: there lies the socket by which one Claude Code could write to another.

Success is exit code 0 AND a result AND `is_error` false: an API error ends with subtype `success`, an interruption with exit code 0. What was consumed is
taken from `model_usage_since_last_result`, as `total_cost_usd` goes on counting over a resumed session.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

from orchestra.agents.access import RETRIES
from orchestra.agents.adapter import AGENT_DIR, ATTEMPT_DIR, Context, Exit, Launch, Signal, SuccessRule, Verdict
from orchestra.agents.apart import more_rights, works_apart
from orchestra.agents.causes import OUR_BUDGET, Cause, belied, ended_outside, failed, last_line, of_message, of_status, reason, unexplained
from orchestra.agents.ending import SUMMARY_CHARACTERS_MAX, exit_in_words, imposed
from orchestra.agents.kindsettings import KindSettings, plain_word
from orchestra.agents.prompt import PROMPT_FILE, PROXY_VARIABLES, cost_left, prompt_of, wish
from orchestra.agents.rehearsal import ACTIVITY_CHARACTERS_MAX, COST_USD, SESSION_CHARACTERS_MAX, count_of, text_of
from orchestra.agents.returning import RETURN_FILE, RETURN_FOLDER
from orchestra.agents.staged import WAITING_SIGNALS, stage_program, waiting_signal
from orchestra.core.model import OutcomeKind, TaskSpec, Usage
from orchestra.errors import BadInput
from orchestra.quantity import usd_micros

SETTINGS: Final = (
    "mode",
    "model",
    "fallback_model",
    "effort",
    "permission_mode",
    "allow_root",
    "tools",
    "allowed_tools",
    "disallowed_tools",
    "max_turns",
    "max_retries",
    "mcp_config",
    "append_system_prompt",
    "base_url",
)
MODES: Final = ("headless", "interactive")
PRINT_ONLY: Final = ("max_turns", "fallback_model")
"""What the CLI knows with `-p` only."""
SIGNALS: Final = ("system", "assistant", "rate_limit_event", "result")
PERMISSION_MODES: Final = ("bypassPermissions", "acceptEdits", "auto", "default", "dontAsk", "manual", "plan")
EDITS: Final = "acceptEdits"
"""Files of the working folder are changed unasked; all else that needs a permission is refused where nobody can be asked."""
ASKS: Final = "default"
TOLD_RETURN: Final = "is the path in the environment variable ORCHESTRA_RETURN, which no command may be allowed to tell you here. Write that file with the tool Write."
"""A command with a variable in it is not one of those that change files of the working folder, so it is refused; the path comes before these words."""
MORE_RIGHTS: Final = "kinds.claude.allowed_tools or permission_mode"
RETRIES_DEFAULT: Final = 10
"""The CLI's own: about three minutes of waiting in all."""
WAIT_SECONDS_MAX: Final = 60
"""A `retry-after` above this makes the CLI give up at once."""
QUIET: Final = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_BUG_COMMAND": "1",
    "DISABLE_COST_WARNINGS": "1",
    "DISABLE_INSTALLATION_CHECKS": "1",
    "DO_NOT_TRACK": "1",
}
KEYS: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
SEEDED: Final = {"hasCompletedOnboarding": True, "theme": "dark", "bypassPermissionsModeAccepted": True}
"""What the CLI would ask a person first. It holds no part of a key: that is only asked for outside of `-p`."""
RETRY_WORDS: Final = {
    "rate_limit": "rate limited",
    "overloaded": "API overloaded",
    "server_error": "API error",
    "authentication_failed": "API refuses the key",
}
_BY_ERROR: Final = {
    "authentication_failed": Cause.AUTH,
    "billing_error": Cause.QUOTA,
    "cloud_credential_error": Cause.AUTH,
    "invalid_request": Cause.REQUEST,
    "max_output_tokens": Cause.REQUEST,
    "model_not_found": Cause.REQUEST,
    "overloaded": Cause.OVERLOADED,
    "rate_limit": Cause.RATE_LIMITED,
    "server_error": Cause.OVERLOADED,
}
"""What the CLI itself calls an API error, in `error` of the message it writes in the model's place."""
_BY_SUBTYPE: Final = {"error_max_turns": Cause.TURNS, "error_max_budget_usd": Cause.BUDGET}
INTERRUPTED: Final = "interrupted (SIGINT, as by Ctrl-C in its window), which the orchestra did not send"
_BY_TERMINAL: Final = {
    "aborted_streaming": Cause.KILLED,
    "aborted_tools": Cause.KILLED,
    "blocking_limit": Cause.REQUEST,
    "budget_exhausted": Cause.BUDGET,
    "hook_stopped": Cause.DENIED,
    "image_error": Cause.REQUEST,
    "max_turns": Cause.TURNS,
    "prompt_too_long": Cause.REQUEST,
    "rapid_refill_breaker": Cause.REQUEST,
    "stop_hook_prevented": Cause.DENIED,
    "tool_deferred": Cause.DENIED,
    "tool_deferred_unavailable": Cause.DENIED,
}
"""What the CLI says in `terminal_reason`, as far as that alone tells the cause (2.1.329). Of what it calls an API error or an error of the model more has to be
read; all else is a crash, by its own words: malformed calls of tools, a turn that could not be set up, an output that does not fit a schema."""
_TOLD_INPUTS: Final = ("file_path", "command", "pattern", "path", "url", "query", "description", "prompt")
CLOSED: Final = "closed"
"""What our own program says in `terminal_reason` of one in a terminal that ended before it was done."""
COMPLAINTS: Final = ("error: ", "Claude Code could not start")
"""How its own last words begin where it does not take an option, or lacks a program that a variable of the node asks for."""
ROOT_REFUSED: Final = "cannot be used with root"
ROOT_HINT: Final = (
    "Claude Code does not skip permissions as root. Run the node as an ordinary user, choose another kinds.claude.permission_mode, "
    "or set kinds.claude.allow_root to true where the machine is a sandbox"
)


def session_of(spec: TaskSpec, context: Context) -> str:
    """Returns the id of a new session, the same for the same attempt by the same agent: a UUID out of a hash."""
    digest = hashlib.sha256(f"{spec.id}#{context.attempt}@{context.agent}".encode("utf-8", "replace")).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-8{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"


def usage_of(end: Exit) -> Usage:
    """Returns what this run consumed. Without a result it is what the last request did, so at least that much."""
    result = end.last.get("result")
    if result is None:
        message = end.last.get("assistant", {}).get("message")
        counts = message.get("usage") if isinstance(message, dict) else None
        return _counted(counts, requests=1) if isinstance(counts, dict) else Usage()
    return usage_of_result(result)


def usage_of_result(result: dict[str, Any]) -> Usage:
    """Returns what the run consumed that this result ends, all its models together."""
    models = result.get("model_usage_since_last_result")
    turns = count_of(result.get("num_turns"))
    if not isinstance(models, dict):
        counts = result.get("usage")
        counted = _counted(counts if isinstance(counts, dict) else {}, requests=turns)
        return msgspec.structs.replace(counted, cost_usd_micros=_micros(result.get("total_cost_usd")))
    total = Usage(requests=turns)
    for each in models.values():
        if isinstance(each, dict):
            total = total.plus(
                Usage(
                    tokens_input=count_of(each.get("inputTokens")),
                    tokens_output=count_of(each.get("outputTokens")),
                    tokens_cache_read=count_of(each.get("cacheReadInputTokens")),
                    tokens_cache_write=count_of(each.get("cacheCreationInputTokens")),
                    cost_usd_micros=_micros(each.get("costUSD")),
                )
            )
    return total


def _counted(counts: dict[str, Any], *, requests: int) -> Usage:
    return Usage(
        requests=requests,
        tokens_input=count_of(counts.get("input_tokens")),
        tokens_output=count_of(counts.get("output_tokens")),
        tokens_cache_read=count_of(counts.get("cache_read_input_tokens")),
        tokens_cache_write=count_of(counts.get("cache_creation_input_tokens")),
    )


def _micros(value: Any) -> int:
    return usd_micros(value, field="total_cost_usd") if isinstance(value, int | float) and COST_USD.fits(value) else 0


def said_of(result: dict[str, Any]) -> str:
    """Returns the final words: the result's text, or its errors."""
    errors = result.get("errors")
    listed = "; ".join(each for each in errors if isinstance(each, str)) if isinstance(errors, list) else ""
    return text_of(result.get("result"), SUMMARY_CHARACTERS_MAX) or listed[:SUMMARY_CHARACTERS_MAX]


def cause_of(end: Exit, result: dict[str, Any]) -> Cause:
    """Returns why a result that is an error is one, by what the CLI says about it."""
    subtype, terminal = result.get("subtype"), result.get("terminal_reason")
    if isinstance(subtype, str) and subtype in _BY_SUBTYPE:
        return _BY_SUBTYPE[subtype]
    if result.get("stop_reason") == "refusal":
        return Cause.REFUSED
    if said_of(result).startswith("No conversation found"):
        return Cause.SESSION
    if isinstance(terminal, str) and terminal in _BY_TERMINAL:
        return _BY_TERMINAL[terminal]
    if terminal == CLOSED:
        return Cause.KILLED if ended_outside(result) else Cause.CRASHED
    return (_of_api(end, result) if terminal in ("api_error", "model_error") else None) or Cause.CRASHED


def _of_api(end: Exit, result: dict[str, Any]) -> Cause | None:
    """What the API answered. The result's words are those of the CLI, unless the CLI blames the model."""
    if result.get("api_error") == "connection_failed":
        return Cause.NETWORK
    message = end.last.get("assistant", {})
    told = message.get("is_api_error_message") is True
    error = message.get("error") if told else None
    said = said_of(result) if told or result.get("terminal_reason") == "api_error" else ""
    found = _BY_ERROR.get(error) if isinstance(error, str) else None
    ours = of_message(said) if OUR_BUDGET in said else None
    found = ours or found or of_status(result.get("api_error_status")) or of_message(said)
    return Cause.QUOTA if found is Cause.RATE_LIMITED and is_spent(end, said) else found


def is_spent(end: Exit, said: str) -> bool:
    """Tells whether a limit is that of a window or plan, by the CLI's own account of its limits or its words for one that is hit."""
    info = end.last.get("rate_limit_event", {}).get("rate_limit_info")
    rejected = isinstance(info, dict) and info.get("status") == "rejected"
    return rejected or of_message(said) is Cause.QUOTA


def waiting(end: Exit) -> Cause | None:
    """Returns what a run that was ended waited for, if its very last words were of a retry."""
    last = last_line(end)
    if last.get("subtype") != "api_retry":
        return None
    error = last.get("error")
    named = _BY_ERROR.get(error) if isinstance(error, str) else None
    return named or of_status(last.get("error_status")) or Cause.NETWORK


def check_interactive(spec: TaskSpec, settings: KindSettings, *, through: bool) -> None:
    """Refuses what the CLI heeds with `-p` only, as it would say nothing about it. A limit of cost is kept by the gateway, if it goes `through` one.

    Raises:
        BadInput: Something of that kind is asked for.
    """
    for name in PRINT_ONLY:
        if settings.text(name):
            raise BadInput(
                "does nothing in mode interactive",
                field=settings.field(name),
                hint=f"leave it out, or set {settings.field('mode')} to headless",
            )
    if spec.cost_usd_micros_max and not through:
        hint = f"use the gateway, which keeps it, or set {settings.field('mode')} to headless"
        raise BadInput("is not kept by Claude Code in mode interactive", field="constraints.max_cost_dollars", hint=hint)


def permission_mode(spec: TaskSpec, *, interactive: bool) -> str:
    """Returns what it may do unasked where the settings do not say: everything where the task works apart, else what harms no more than files of its folder,
    or what a person allows it."""
    if works_apart(spec):
        return PERMISSION_MODES[0]
    return ASKS if interactive else EDITS


class Claude:
    """The kind's adapter; it has no state."""

    kind = "claude"
    programs: tuple[str, ...] = ("claude",)
    variables: tuple[str, ...] = (*KEYS, *PROXY_VARIABLES)
    memory_bytes: int = 300 << 20
    """200 MB at the start, 330 MB after fifty turns (2.1.329)."""
    sessions_move = True

    def launch(self, spec: TaskSpec, context: Context) -> Launch:
        """Returns the process. The prompt is a file, and a session of an earlier attempt is gone on with if there is one."""
        settings = KindSettings(self.kind, context.settings, SETTINGS)
        interactive = settings.choice("mode", MODES[0], MODES) == "interactive"
        through = context.access is not None and "anthropic" in context.access.apis
        if interactive:
            check_interactive(spec, settings, through=through)
        mode = settings.choice("permission_mode", permission_mode(spec, interactive=interactive), PERMISSION_MODES)
        options, files = ["--permission-mode", mode, *self._options(spec, settings)], {PROMPT_FILE: prompt_of(spec)}
        told = settings.word("append_system_prompt")
        if spec.returns and mode != PERMISSION_MODES[0]:
            # In a window it would ask whether that folder is trusted; there a rule of its settings lets it write the file.
            options += [] if interactive else ["--add-dir", f"{ATTEMPT_DIR}{RETURN_FOLDER}"]
            told = f"{ATTEMPT_DIR}{RETURN_FILE} {TOLD_RETURN}\n\n{told}".rstrip()
        options += ["--append-system-prompt", told] if told else []
        session = plain_word(context.session, field="session")
        options += ["--resume", session] if session else ["--session-id", session_of(spec, context)]
        left = cost_left(spec, context)
        if left and not interactive:
            options += ["--max-budget-usd", left]  # it counts from its own start, also in a resumed session
        mcp = settings.text("mcp_config")
        if mcp.startswith("{"):
            files["mcp.json"] = mcp
            options += ["--mcp-config", f"{ATTEMPT_DIR}mcp.json"]
        elif mcp:
            options += ["--mcp-config", plain_word(mcp, field=settings.field("mcp_config"))]
        options += ["--strict-mcp-config"]
        headless = ("claude", "-p", "--output-format", "stream-json", "--verbose", *options)
        return Launch(
            argv=stage_program("claude_terminal", ATTEMPT_DIR, "claude", *options) if interactive else headless,
            files=files,
            agent_files={"claude/.claude.json": msgspec.json.encode(SEEDED).decode()},
            env={**self._env(settings, through=through), **spec.env},
            env_pass=self.variables,
            stdin="screen" if interactive else "prompt",
            view="json",
            signals=(*SIGNALS, *WAITING_SIGNALS) if interactive else SIGNALS,
            success=SuccessRule(signal_type="result", signal_fields={"is_error": False}),
            sandbox=True,
        )

    def _env(self, settings: KindSettings, *, through: bool) -> dict[str, str]:
        env = {**QUIET, "CLAUDE_CONFIG_DIR": f"{AGENT_DIR}claude", "XDG_RUNTIME_DIR": f"{AGENT_DIR}run"}
        env["CLAUDE_CODE_MAX_RETRIES"] = str(settings.number("max_retries", RETRIES if through else RETRIES_DEFAULT, most=100))
        if (url := settings.text("base_url")) and not through:  # the gateway goes there
            env["ANTHROPIC_BASE_URL"] = url
        if settings.flag("allow_root"):
            env["IS_SANDBOX"] = "1"
        return env

    def _options(self, spec: TaskSpec, settings: KindSettings) -> list[str]:
        """Returns what the settings ask for; a task's own `model` wins."""
        model = plain_word(wish(spec, "model"), field="requirements.model") or settings.word("model")
        turns = settings.number("max_turns")
        pairs = {
            "--model": model,
            "--fallback-model": settings.word("fallback_model"),
            "--effort": settings.word("effort"),
            "--max-turns": str(turns or ""),
            "--tools": settings.word("tools"),
            "--allowedTools": settings.word("allowed_tools"),
            "--disallowedTools": settings.word("disallowed_tools"),
        }
        return [part for name, value in pairs.items() if value for part in (name, value)]

    def signal(self, line: dict[str, Any]) -> Signal | None:
        """Returns what a line tells: what it does now, what it waits for, what it has used."""
        session = text_of(line.get("session_id"), SESSION_CHARACTERS_MAX)
        match line.get("type"), line.get("subtype"):
            case "system", "init":
                return Signal(_started(line), session=session)
            case "system", "api_retry":
                what = RETRY_WORDS.get(str(line.get("error")), "API not reached" if line.get("error_status") is None else "API error")
                return Signal(f"{what}, waits {-(-count_of(line.get('retry_delay_ms')) // 1000)} s", session=session)
            case "system", "permission_denied":
                return Signal(f"not allowed: {text_of(line.get('tool_name'), ACTIVITY_CHARACTERS_MAX)}", session=session)
            case "waiting" | "answered", _:
                return waiting_signal(line, session)
            case "assistant", _:
                activity = _activity(line)
                return Signal(activity, session=session) if activity else None
            case "rate_limit_event", _:
                info = line.get("rate_limit_info")
                rejected = isinstance(info, dict) and info.get("status") == "rejected"
                return Signal("usage limit reached", session=session) if rejected else None
            case "result", _:
                well = line.get("is_error") is False
                return Signal("done" if well else "failed", 1.0 if well else None, usage_of_result(line), session)
            case _:
                return None

    def verdict(self, spec: TaskSpec, end: Exit) -> Verdict:
        """Returns done only for exit code 0 with a result that is no error. What was consumed counts however it ended."""
        result, usage, session = end.last.get("result"), usage_of(end), _session(end)
        if (decided := imposed(end)) is not None:
            cause = waiting(end) if decided.kind is OutcomeKind.TIMEOUT and result is None else None
            return Verdict(decided.kind, reason(cause, decided.reason) if cause else decided.reason, usage, session)
        if result is None:
            return _without_result(end, usage, session)
        said = said_of(result)
        if result.get("is_error") is not False or result.get("stop_reason") == "refusal":
            cause = cause_of(end, result)
            return failed(cause, _explained(cause, said, end, result), usage, session, said)
        if end.code != 0 or end.signal:
            return belied(end, usage, session, said)
        denied = _denied(result)
        if denied and count_of(result.get("num_turns")) - 1 <= len(denied):
            what = f"nothing was done: it was not allowed to use {', '.join(sorted(set(denied)))}; {more_rights(MORE_RIGHTS, spec)}; it said: {said}"
            return failed(Cause.DENIED, what, usage, session, said)
        note = (
            f"{len(denied)} tool calls were not allowed: {', '.join(sorted(set(denied)))}; {more_rights(MORE_RIGHTS, spec)}"
            if denied
            else ""
        )
        summary = f"[{note}] {said}" if note else said
        return Verdict(OutcomeKind.DONE, note, usage, session, summary[:SUMMARY_CHARACTERS_MAX])


def _session(end: Exit) -> str:
    """The session's id, from whichever line has it."""
    found = (text_of(end.last.get(kind, {}).get("session_id"), SESSION_CHARACTERS_MAX) for kind in ("result", "system", "assistant"))
    return next(filter(None, found), "")


def _denied(result: dict[str, Any]) -> list[str]:
    denials = result.get("permission_denials")
    return [text_of(each.get("tool_name"), 60) for each in denials if isinstance(each, dict)] if isinstance(denials, list) else []


def _explained(cause: Cause, said: str, end: Exit, result: dict[str, Any]) -> str:
    """Adds what the CLI does not say: why it gave up on a limit without having waited, and what its words for an interruption mean."""
    terminal = text_of(result.get("terminal_reason"), 60)
    if terminal.startswith("aborted_"):
        return INTERRUPTED
    started = end.last.get("system", {})
    if (
        cause is Cause.RATE_LIMITED and started.get("subtype") != "api_retry" and "source" not in started
    ):  # in a terminal it does not tell of retries
        return f"{said} (given up at once: the API asked for a wait of more than {WAIT_SECONDS_MAX} s, or for none)"
    return said or f"its result says it failed: {terminal}"


def _without_result(end: Exit, usage: Usage, session: str) -> Verdict:
    """What it printed before its first record is its own complaint about how it was started; later lines may be the model's. Exit code 0 without a result is
    an interruption: it does not always come to say so."""
    complaint = "" if "system" in end.last else " ".join(end.tail)
    if ROOT_REFUSED in complaint:
        return failed(Cause.CONFIG, ROOT_HINT, usage, session)
    if "already in use" in complaint or "No conversation found" in complaint:
        return failed(Cause.SESSION, complaint, usage, session)
    if end.code == 1 and complaint.startswith(COMPLAINTS):
        return failed(Cause.CONFIG, exit_in_words(end), usage, session)
    if end.code == 0:
        return failed(Cause.KILLED, INTERRUPTED, usage, session)
    return unexplained(end, usage, session)


def _started(line: dict[str, Any]) -> str:
    servers = line.get("mcp_servers")
    broken = [each for each in servers if isinstance(each, dict) and each.get("status") == "failed"] if isinstance(servers, list) else []
    return f"started, without MCP server {text_of(broken[0].get('name'), 60)}" if broken else "started"


def _activity(line: dict[str, Any]) -> str:
    """The last block of a message in a few words: the text's first line, or the tool and what it is used on."""
    message = line.get("message")
    blocks = message.get("content") if isinstance(message, dict) else None
    block = blocks[-1] if isinstance(blocks, list) and blocks and isinstance(blocks[-1], dict) else {}
    who = "sub-agent: " if line.get("parent_tool_use_id") else ""
    match block.get("type"):
        case "text":
            words = text_of(block.get("text"), SUMMARY_CHARACTERS_MAX).strip().partition("\n")[0]
        case "tool_use":
            given = block.get("input")
            told = next((given[name] for name in _TOLD_INPUTS if isinstance(given.get(name), str)), "") if isinstance(given, dict) else ""
            words = " ".join(f"{text_of(block.get('name'), 60)} {told[:SUMMARY_CHARACTERS_MAX]}".split())
        case _:
            return ""
    return f"{who}{words}"[:ACTIVITY_CHARACTERS_MAX] if words else ""


ADAPTER: Final = Claude()
