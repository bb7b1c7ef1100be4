"""Kind `gemini`: the Gemini CLI, headless, JSON lines. Success is exit code 0 AND a `result` whose status is `success`."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from orchestra.agents.adapter import AGENT_DIR, Context, Exit, Launch, Signal, SuccessRule, Verdict
from orchestra.agents.apart import works_apart
from orchestra.agents.causes import Cause, belied, failed, of_message, of_status, unexplained
from orchestra.agents.ending import SUMMARY_CHARACTERS_MAX, imposed
from orchestra.agents.kindsettings import KindSettings, plain_word
from orchestra.agents.prompt import PROMPT_FILE, PROXY_VARIABLES, prompt_of, wish
from orchestra.agents.rehearsal import ACTIVITY_CHARACTERS_MAX, SESSION_CHARACTERS_MAX, count_of, text_of
from orchestra.core.model import OutcomeKind, TaskSpec, Usage

SETTINGS: Final = ("model", "approval_mode", "base_url")
APPROVAL_MODES: Final = ("yolo", "auto_edit", "default", "plan")
CONFIG: Final = {
    "general": {"disableAutoUpdate": True, "disableUpdateNag": True},
    "privacy": {"usageStatisticsEnabled": False},
    "security": {"auth": {"selectedType": "gemini-api-key"}},
}
_CODE: Final = re.compile(r'"code":\s*(\d{3})\b')


def usage_of(result: dict[str, Any]) -> Usage:
    """Returns what a result tells. Cached input is part of the input there, and counted apart here."""
    told = result.get("stats")
    stats = told if isinstance(told, dict) else {}
    cached = count_of(stats.get("cached"))
    return Usage(
        tokens_input=max(count_of(stats.get("input_tokens")) - cached, 0),
        tokens_output=count_of(stats.get("output_tokens")),
        tokens_cache_read=cached,
    )


class Gemini:
    """The kind's adapter; it has no state."""

    kind = "gemini"
    programs: tuple[str, ...] = ("gemini",)
    variables: tuple[str, ...] = ("GEMINI_API_KEY", *PROXY_VARIABLES)
    memory_bytes: int = 260 << 20
    """Measured with 0.61.0."""

    def launch(self, spec: TaskSpec, context: Context) -> Launch:
        """Returns the process. Every attempt begins a session of its own."""
        settings = KindSettings(self.kind, context.settings, SETTINGS)
        model = plain_word(wish(spec, "model"), field="requirements.model") or settings.word("model")
        mode = settings.choice("approval_mode", APPROVAL_MODES[0 if works_apart(spec) else 1], APPROVAL_MODES)
        url = settings.text("base_url")
        return Launch(
            argv=("gemini", "--output-format", "stream-json", "--approval-mode", mode, *(("-m", model) if model else ())),
            files={PROMPT_FILE: prompt_of(spec)},
            agent_files={"gemini/.gemini/settings.json": msgspec.json.encode(CONFIG).decode()},
            env={
                "GEMINI_CLI_HOME": f"{AGENT_DIR}gemini",
                "GEMINI_CLI_TRUST_WORKSPACE": "true",
                **({"GOOGLE_GEMINI_BASE_URL": url} if url else {}),
                **spec.env,
            },
            env_pass=self.variables,
            stdin="prompt",
            view="json",
            signals=("init", "message", "tool_use", "result"),
            success=SuccessRule(signal_type="result", signal_fields={"status": "success"}),
            sandbox=True,
        )

    def signal(self, line: dict[str, Any]) -> Signal | None:
        """Returns what a line tells."""
        match line.get("type"), line.get("role"):
            case "init", _:
                return Signal("started", session=text_of(line.get("session_id"), SESSION_CHARACTERS_MAX))
            case "message", "assistant":
                words = text_of(line.get("content"), SUMMARY_CHARACTERS_MAX).strip().partition("\n")[0]
                return Signal(words[:ACTIVITY_CHARACTERS_MAX]) if words else None
            case "tool_use", _:
                return Signal(text_of(line.get("tool_name"), ACTIVITY_CHARACTERS_MAX))
            case "result", _:
                well = line.get("status") == "success"
                return Signal("done" if well else "failed", 1.0 if well else None, usage_of(line))
            case _:
                return None

    def verdict(self, spec: TaskSpec, end: Exit) -> Verdict:
        """Returns done only for exit code 0 with a result that says success."""
        result = end.last.get("result")
        usage, session = usage_of(result or {}), text_of(end.last.get("init", {}).get("session_id"), SESSION_CHARACTERS_MAX)
        if (decided := imposed(end)) is not None:
            return Verdict(decided.kind, decided.reason, usage, session)
        if result is None:
            return unexplained(end, usage, session)
        if result.get("status") != "success":
            error = result.get("error")
            message = text_of(error.get("message") if isinstance(error, dict) else None, SUMMARY_CHARACTERS_MAX)
            code = _CODE.search(message)
            cause = (of_status(int(code.group(1))) if code else None) or of_message(message) or Cause.CRASHED
            cause = Cause.QUOTA if cause is Cause.RATE_LIMITED and of_message(message) is Cause.QUOTA else cause
            return failed(cause, message or "its result says it failed", usage, session)
        if end.code != 0 or end.signal:
            return belied(end, usage, session)
        said = end.last.get("message", {})
        summary = text_of(said.get("content"), SUMMARY_CHARACTERS_MAX) if said.get("role") == "assistant" else ""
        return Verdict(OutcomeKind.DONE, "", usage, session, summary)


ADAPTER: Final = Gemini()
