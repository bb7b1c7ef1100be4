"""Kind `codex`: the Codex CLI, headless (`codex exec`). The prompt goes in by standard input, JSON lines come out.
In mode `interactive` it is `codex app-server`, spoken to by `stage/codex_server.py`, from which the same lines come; in mode `mcp` the MCP server
that programs before 0.154.0 have, by `stage/codex_mcp.py`.

Success is exit code 0 AND a line `turn.completed`. The usage in it counts from the beginning of the session, so a verdict says so. The CLI names no cost.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from orchestra.agents.access import RETRIES, TOKEN_HEADER, TOKEN_VARIABLE, Access
from orchestra.agents.adapter import AGENT_DIR, ATTEMPT_DIR, Context, Exit, Launch, Signal, SuccessRule, Verdict
from orchestra.agents.apart import works_apart
from orchestra.agents.causes import Cause, belied, ended_outside, error_body, failed, last_line, of_message, reason, unexplained
from orchestra.agents.ending import SUMMARY_CHARACTERS_MAX, exit_in_words, imposed
from orchestra.agents.kindsettings import KindSettings, plain_word
from orchestra.agents.prompt import PROMPT_FILE, PROXY_VARIABLES, prompt_of, wish
from orchestra.agents.rehearsal import ACTIVITY_CHARACTERS_MAX, SESSION_CHARACTERS_MAX, count_of, text_of
from orchestra.agents.returning import RETURN_FOLDER
from orchestra.agents.staged import WAITING_SIGNALS, stage_program, waiting_signal
from orchestra.core.model import OutcomeKind, TaskSpec, Usage
from orchestra.errors import BadInput

SETTINGS: Final = (
    "mode",
    "approval_policy",
    "model",
    "effort",
    "sandbox",
    "base_url",
    "api_key_variable",
    "request_max_retries",
    "stream_max_retries",
    "stream_idle_timeout_ms",
)
MODES: Final = ("headless", "interactive", "mcp")
APPROVALS: Final = ("never", "on-request", "untrusted")
SIGNALS: Final = ("thread.started", "item.started", "item.completed", "error", "turn.completed", "turn.failed")
SANDBOXES: Final = ("bypass", "read-only", "workspace-write", "danger-full-access")
CONFINED: Final = "workspace-write"
"""Its commands write the working folder and temporary ones, and reach no network."""
KEY_VARIABLE: Final = "OPENAI_API_KEY"
LOGIN_VARIABLE: Final = "CODEX_API_KEY"
"""What the CLI itself reads where no `base_url` is set."""
SUBSCRIPTION_VARIABLE: Final = "CODEX_ACCESS_TOKEN"
"""A subscription's login that the CLI reads by itself; another one is in its folder."""
PROVIDER: Final = "orchestra"
SUBSCRIBED: Final = "OpenAI"
"""What the provider of a subscription has to be called."""
INTERRUPTED: Final = "interrupted"
"""The whole message of a turn that somebody ended."""
BY_CTRL_C: Final = "interrupted (SIGINT, as by Ctrl-C in its window), which the orchestra did not send"
USAGE_EXIT_CODE: Final = 2
"""Exit code for an option it does not know."""


def toml_text(value: str) -> str:
    """Returns a TOML string: JSON's escapes are among TOML's own."""
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")


def config_of(settings: KindSettings, access: Access | None = None) -> str:
    """Returns the CLI's configuration: nothing that calls out or stays behind, no key for the tools, and the provider if there is an address for one.

    A shell snapshot is a file with all variables, the key among them.

    Args:
        settings: The kind's own, with the address.
        access: The way through the gateway. Where that passes logins on, the token is shown in a header of its own.
    """
    lines = ["check_for_update_on_startup = false"]
    url = settings.text("base_url")
    if url:
        lines += [f"model_provider = {toml_text(PROVIDER)}"]
    if effort := settings.text("effort"):
        lines += [f"model_reasoning_effort = {toml_text(effort)}"]
    lines += [
        "",
        "[features]",
        "plugins = false",
        "daemon_auto_start = false",
        "shell_snapshot = false",
        *(["default_mode_request_user_input = true"] if settings.text("mode") == "interactive" else []),
        "",
        "[analytics]",
        "enabled = false",
    ]
    hidden = ", ".join(toml_text(name) for name in (*login_variables(settings), TOKEN_VARIABLE))
    lines += ["", "[shell_environment_policy]", f"exclude = [{hidden}]"]
    if url:
        passed = None if access is None else access.logins.get("openai")
        lines += [
            "",
            f"[model_providers.{PROVIDER}]",
            f"name = {toml_text(SUBSCRIBED if passed else PROVIDER)}",
            f"base_url = {toml_text(url)}",
            'wire_api = "responses"',
            "requires_openai_auth = true" if passed else f"env_key = {toml_text(key_variable(settings))}",
        ]
        if passed is not None:
            lines += [f"env_http_headers = {{{toml_text(TOKEN_HEADER)} = {toml_text(TOKEN_VARIABLE)}}}"]
        for name in ("request_max_retries", "stream_max_retries", "stream_idle_timeout_ms"):
            number = settings.number(name, most=86_400_000)
            lines += [f"{name} = {number}"] if number is not None else []
    return "\n".join(lines) + "\n"


def key_variable(settings: KindSettings) -> str:
    """Returns the name of the variable that has the key."""
    return settings.word("api_key_variable", KEY_VARIABLE)


def login_variables(settings: KindSettings) -> tuple[str, ...]:
    """Returns the names of all variables that may have a key or login."""
    return tuple(dict.fromkeys((key_variable(settings), LOGIN_VARIABLE, SUBSCRIPTION_VARIABLE)))


def usage_of(line: dict[str, Any]) -> Usage:
    """Returns the session's usage by a `turn.completed`. Cached input is part of the input there, and counted apart here."""
    told = line.get("usage")
    counts = told if isinstance(told, dict) else {}
    cached = count_of(counts.get("cached_input_tokens"))
    return Usage(
        tokens_input=max(count_of(counts.get("input_tokens")) - cached, 0),
        tokens_output=count_of(counts.get("output_tokens")),
        tokens_cache_read=cached,
        tokens_cache_write=count_of(counts.get("cache_write_input_tokens")),
    )


def message_of(line: dict[str, Any] | None) -> str:
    """Returns the message of an `error` or `turn.failed`."""
    if line is None:
        return ""
    error = line.get("error")
    return text_of(error.get("message") if isinstance(error, dict) else line.get("message"), SUMMARY_CHARACTERS_MAX)


def in_words(message: str) -> str:
    """Returns the message without the JSON around it."""
    return text_of(error_body(message).get("message"), SUMMARY_CHARACTERS_MAX) or message


def through_gateway(values: dict[str, str], access: Access | None) -> dict[str, str]:
    """Returns the kind's settings with the gateway in the place of the API, if there is one. It needs a provider of its own, as the built-in one is
    not moved by a variable."""
    if access is None or "openai" not in access.apis:
        return values
    retries = dict.fromkeys(("request_max_retries", "stream_max_retries"), str(RETRIES))
    key = {} if "openai" in access.logins else {"api_key_variable": KEY_VARIABLE}
    return {**retries, **values, "base_url": access.address("openai"), **key}


class Codex:
    """The kind's adapter; it has no state."""

    kind = "codex"
    programs: tuple[str, ...] = ("codex",)
    variables: tuple[str, ...] = (KEY_VARIABLE, LOGIN_VARIABLE, SUBSCRIPTION_VARIABLE, *PROXY_VARIABLES)
    memory_bytes: int = 160 << 20
    """145 MB, of which instances share most (0.169.0)."""
    sessions_move = True

    def launch(self, spec: TaskSpec, context: Context) -> Launch:
        """Returns the process. The prompt is a file, and a session of an earlier attempt is gone on with if there is one."""
        settings = KindSettings(self.kind, through_gateway(context.settings, context.access), SETTINGS)
        mode = settings.choice("mode", MODES[0], MODES)
        sandbox, in_ours = self._sandboxes(spec, settings)
        asks = mode == "interactive" and not works_apart(spec)
        approval = settings.choice("approval_policy", APPROVALS[1 if asks else 0], APPROVALS)
        if approval != "never" and mode != "interactive":
            hint = f"set {settings.field('mode')} to interactive"
            raise BadInput("asks, and in this mode nobody can answer", field=settings.field("approval_policy"), hint=hint)
        interactive = mode == "interactive"
        model = plain_word(wish(spec, "model"), field="requirements.model") or settings.word("model")
        session = plain_word(context.session, field="session")

        def argv(confined: str) -> tuple[str, ...]:
            if interactive:
                return self._interactive(confined, approval, model, session)
            if mode == "mcp":
                return self._mcp(confined, approval, model)
            return self._headless(confined, model, session, returns=bool(spec.returns))

        return Launch(
            argv=argv(sandbox),
            sandbox_argv=argv(in_ours) if in_ours != sandbox else (),
            files={PROMPT_FILE: prompt_of(spec)},
            agent_files={"codex/config.toml": config_of(settings, context.access)},
            env={"CODEX_HOME": f"{AGENT_DIR}codex", **spec.env},
            env_pass=(*login_variables(settings), *PROXY_VARIABLES),
            stdin={"interactive": "pane", "mcp": "null"}.get(mode, "prompt"),
            view="json",
            signals=(*SIGNALS, *WAITING_SIGNALS) if interactive else SIGNALS,
            success=SuccessRule(signal_type="turn.completed"),
            sandbox=True,
        )

    @staticmethod
    def _sandboxes(spec: TaskSpec, settings: KindSettings) -> tuple[str, str]:
        """Returns which of its own sandboxes confines it, without one of ours around it and within. By default it is let write nothing but the folder where
        that is shared; ours sees to that too, and its own does not work in it."""
        if works_apart(spec) or settings.text("sandbox"):
            chosen = settings.choice("sandbox", SANDBOXES[0], SANDBOXES)
            return chosen, chosen
        return CONFINED, SANDBOXES[0]

    @staticmethod
    def _headless(sandbox: str, model: str, session: str, *, returns: bool) -> tuple[str, ...]:
        if sandbox == "bypass":
            options = ["--dangerously-bypass-approvals-and-sandbox"]
        else:
            options = ["-c", f"sandbox_mode={toml_text(sandbox)}", "-c", 'approval_policy="never"']
            options += ["--add-dir", f"{ATTEMPT_DIR}{RETURN_FOLDER}"] if returns else []
        options += ["-m", model] if model else []
        resumed = ("resume", session) if session else ()
        return ("codex", "exec", "--json", "--skip-git-repo-check", *options, "-o", f"{ATTEMPT_DIR}last.txt", *resumed)

    @staticmethod
    def _interactive(sandbox: str, approval: str, model: str, session: str) -> tuple[str, ...]:
        thread = {"sandbox": "danger-full-access" if sandbox == "bypass" else sandbox, "approvalPolicy": approval}
        thread |= {name: value for name, value in (("model", model), ("threadId", session)) if value}
        return stage_program("codex_server", f"{ATTEMPT_DIR}{PROMPT_FILE}", msgspec.json.encode(thread).decode(), "codex", "app-server")

    @staticmethod
    def _mcp(sandbox: str, approval: str, model: str) -> tuple[str, ...]:
        """The server knows the threads of its own life only: no session is gone on with, and none is told."""
        tool = {"sandbox": "danger-full-access" if sandbox == "bypass" else sandbox, "approval-policy": approval}
        tool |= {"model": model} if model else {}
        return stage_program("codex_mcp", f"{ATTEMPT_DIR}{PROMPT_FILE}", msgspec.json.encode(tool).decode(), "codex", "mcp-server")

    def signal(self, line: dict[str, Any]) -> Signal | None:
        """Returns what a line tells. An `error` may be no more than a connection that is made again."""
        match line.get("type"):
            case "waiting" | "answered":
                return waiting_signal(line)
            case "thread.started":
                return Signal("started", session=text_of(line.get("thread_id"), SESSION_CHARACTERS_MAX))
            case "item.started" | "item.completed":
                item = line.get("item")
                activity = _activity(item) if isinstance(item, dict) else ""
                return Signal(activity) if activity else None
            case "error":
                return Signal(f"API: {in_words(message_of(line))}"[:ACTIVITY_CHARACTERS_MAX])
            case "turn.completed":
                return Signal("done", 1.0, usage_of(line))
            case "turn.failed":
                return Signal("failed")
            case _:
                return None

    def verdict(self, spec: TaskSpec, end: Exit) -> Verdict:
        """Returns done only for exit code 0 with a completed turn."""
        completed, stopped = end.last.get("turn.completed"), end.last.get("turn.failed")
        usage = usage_of(completed or stopped or {})
        session = text_of(end.last.get("thread.started", {}).get("thread_id"), SESSION_CHARACTERS_MAX)
        summary = _summary(end)
        if (decided := imposed(end)) is not None:
            cause = _waiting(end) if decided.kind is OutcomeKind.TIMEOUT else None
            why = reason(cause, decided.reason) if cause else decided.reason
            found = Verdict(decided.kind, why, usage, session)
        elif stopped is not None:
            found = _failed_turn(stopped, usage, session, summary)
        elif completed is None:
            found = _without_turn(end, usage, session)
        elif end.code != 0 or end.signal:
            found = belied(end, usage, session, summary)
        else:
            found = Verdict(OutcomeKind.DONE, "", usage, session, summary)
        return msgspec.structs.replace(found, usage_of_session=True)


def _waiting(end: Exit) -> Cause | None:
    """Returns what a run that was ended waited for, if its very last words were of a broken connection. A server that is driven says that it was ended."""
    told = last_line(end)
    if told.get("type") == "turn.failed":
        told = last_line(msgspec.structs.replace(end, tail=end.tail[:-1]))
    return of_message(message_of(told)) if told.get("type") == "error" else None


def _failed_turn(stopped: dict[str, Any], usage: Usage, session: str, summary: str) -> Verdict:
    """A server that is gone is told with how it ended, a turn that was interrupted with that word: neither is an answer of the API."""
    message = message_of(stopped)
    if "exit_code" in stopped:
        # Told to go by SIGTERM, the server goes with exit code 0; by itself it stays until its input is closed.
        outside = ended_outside(stopped)
        more = ", and the orchestra did not tell it to" if outside else ""
        return failed(Cause.KILLED if outside else Cause.CRASHED, message + more, usage, session, summary)
    if message == INTERRUPTED:
        return failed(Cause.KILLED, BY_CTRL_C, usage, session, summary)
    unknown = Cause.SESSION if message.startswith("thread/resume: ") else None
    return failed(unknown or of_message(message) or Cause.CRASHED, in_words(message), usage, session, summary)


def _without_turn(end: Exit, usage: Usage, session: str) -> Verdict:
    """What it printed before its first record is its own complaint about how it was started; later lines may be a tool's. Exit code 1 in the midst of its
    records, without a word about a failure, is an interruption."""
    complaint = "" if session else " ".join(end.tail)
    if "thread/resume" in complaint:
        return failed(Cause.SESSION, exit_in_words(end), usage, session)
    if end.code == USAGE_EXIT_CODE and not session:
        return failed(Cause.CONFIG, exit_in_words(end), usage, session)
    if end.code == 1 and session and end.tail and end.tail[-1].startswith("{"):
        return failed(Cause.KILLED, BY_CTRL_C, usage, session)
    return unexplained(end, usage, session)


def _summary(end: Exit) -> str:
    """The last message, if the last item is one."""
    item = end.last.get("item.completed", {}).get("item")
    return text_of(item.get("text"), SUMMARY_CHARACTERS_MAX) if isinstance(item, dict) and item.get("type") == "agent_message" else ""


def _activity(item: dict[str, Any]) -> str:
    """An item in a few words."""
    match item.get("type"):
        case "agent_message" | "reasoning":
            words = text_of(item.get("text"), SUMMARY_CHARACTERS_MAX).strip().partition("\n")[0]
        case "command_execution":
            command = text_of(item.get("command"), SUMMARY_CHARACTERS_MAX)
            words = f"$ {command.removeprefix('/bin/bash -lc ')}"
        case "file_change":
            changes = item.get("changes")
            paths = [text_of(each.get("path"), 200) for each in changes if isinstance(each, dict)] if isinstance(changes, list) else []
            words = f"changed {', '.join(paths)}"
        case "error":
            words = f"warning: {text_of(item.get('message'), SUMMARY_CHARACTERS_MAX)}"
        case other:
            words = text_of(other, ACTIVITY_CHARACTERS_MAX).replace("_", " ")
    return " ".join(words.split())[:ACTIVITY_CHARACTERS_MAX]


ADAPTER: Final = Codex()
