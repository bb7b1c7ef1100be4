"""Kind `opencode`: `opencode run`, JSON lines. The prompt goes in by standard input, as it would be re-quoted as an argument.

There is no line for the end. Success is exit code 0 with a last step that stopped for no tool call, and no `error`. Usage is told step by step, so an
outcome has that of the last step only.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from orchestra.agents.access import TOKEN_HEADER, TOKEN_VARIABLE, Access
from orchestra.agents.adapter import AGENT_DIR, Context, Exit, Launch, Signal, SuccessRule, Verdict
from orchestra.agents.causes import Cause, belied, failed, of_message, of_status, unexplained
from orchestra.agents.ending import SUMMARY_CHARACTERS_MAX, imposed
from orchestra.agents.kindsettings import KindSettings, plain_word
from orchestra.agents.prompt import PROMPT_FILE, PROXY_VARIABLES, prompt_of, wish
from orchestra.agents.rehearsal import ACTIVITY_CHARACTERS_MAX, COST_USD, SESSION_CHARACTERS_MAX, count_of, text_of
from orchestra.core.model import OutcomeKind, TaskSpec, Usage
from orchestra.quantity import usd_micros

SETTINGS: Final = ("model", "base_url", "api_key_variable")
PROVIDER: Final = "orchestra"
KEYS: Final = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "OPENROUTER_API_KEY", "GEMINI_API_KEY")


def config_of(settings: KindSettings, model: str, access: Access | None = None) -> dict[str, Any]:
    """Returns the CLI's configuration; a provider that speaks OpenAI's chat form if there is an address for one. A gateway takes the place of that address
    and of the built-in providers'; to one that passes logins on, the token is shown in a header of its own."""
    config: dict[str, Any] = {"autoupdate": False, "share": "disabled"}
    url = settings.text("base_url")
    shown: dict[str, Any] = {}
    if access is not None:
        tokens = {api: {"headers": {TOKEN_HEADER: f"{{env:{TOKEN_VARIABLE}}}"}} for api in access.apis if api in access.logins}
        config["provider"] = {
            api: {"options": {"baseURL": f"{access.url}/v1", **tokens.get(api, {})}} for api in access.apis if api != "gemini"
        }
        if "openai" in access.apis:
            url, shown = url and access.address("openai"), tokens.get("openai", {})
    if url:
        variable = settings.word("api_key_variable", "OPENAI_API_KEY")
        variable = "OPENAI_API_KEY" if access is not None and "openai" in access.held else variable
        config.setdefault("provider", {})[PROVIDER] = {
            "npm": "@ai-sdk/openai-compatible",
            "name": PROVIDER,
            "options": {"baseURL": url, "apiKey": f"{{env:{variable}}}", **shown},
            "models": {model: {"name": model}},
        }
    return config


def usage_of(end: Exit) -> Usage:
    """Returns what the last step consumed."""
    part = end.last.get("step_finish", {}).get("part")
    tokens = part.get("tokens") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(tokens, dict):
        return Usage()
    cache, cost = tokens.get("cache"), part.get("cost")
    cached = cache if isinstance(cache, dict) else {}
    return Usage(
        requests=1,
        tokens_input=count_of(tokens.get("input")),
        tokens_output=count_of(tokens.get("output")),
        tokens_cache_read=count_of(cached.get("read")),
        tokens_cache_write=count_of(cached.get("write")),
        cost_usd_micros=usd_micros(cost, field="cost") if isinstance(cost, int | float) and COST_USD.fits(cost) else 0,
    )


class Opencode:
    """The kind's adapter; it has no state."""

    kind = "opencode"
    programs: tuple[str, ...] = ("opencode",)
    variables: tuple[str, ...] = (*KEYS, *PROXY_VARIABLES)
    memory_bytes: int = 630 << 20
    """Measured with 1.18.33."""

    def launch(self, spec: TaskSpec, context: Context) -> Launch:
        """Returns the process."""
        settings = KindSettings(self.kind, context.settings, SETTINGS)
        model = plain_word(wish(spec, "model"), field="requirements.model") or settings.word("model")
        named = f"{PROVIDER}/{model}" if model and settings.text("base_url") else model
        session = plain_word(context.session, field="session")
        variable = settings.word("api_key_variable")
        folders = {f"XDG_{name.upper()}_HOME": f"{AGENT_DIR}opencode/{name}" for name in ("config", "data", "state", "cache")}
        return Launch(
            argv=("opencode", "run", "--format", "json", *(("-m", named) if named else ()), *(("--session", session) if session else ())),
            files={PROMPT_FILE: prompt_of(spec)},
            agent_files={
                "opencode/config/opencode/opencode.json": msgspec.json.encode(config_of(settings, model, context.access)).decode()
            },
            env={**folders, "OPENCODE_DISABLE_AUTOUPDATE": "true", **spec.env},
            env_pass=(*dict.fromkeys((variable, *KEYS) if variable else KEYS), *PROXY_VARIABLES),
            stdin="prompt",
            view="json",
            signals=("step_start", "text", "tool_use", "step_finish", "error"),
            success=SuccessRule(signal_type="step_finish"),
            sandbox=True,
        )

    def signal(self, line: dict[str, Any]) -> Signal | None:
        """Returns what a line tells."""
        found, session = line.get("part"), text_of(line.get("sessionID"), SESSION_CHARACTERS_MAX)
        part = found if isinstance(found, dict) else {}
        match line.get("type"):
            case "text":
                activity = text_of(part.get("text"), SUMMARY_CHARACTERS_MAX).strip().partition("\n")[0]
            case "tool_use":
                state = part.get("state")
                title = text_of(state.get("title"), SUMMARY_CHARACTERS_MAX) if isinstance(state, dict) else ""
                activity = " ".join(f"{text_of(part.get('tool'), 60)} {title}".split())
            case "error":
                activity = f"error: {error_of(line)[0]}"
            case "step_start":
                activity = ""
            case _:
                return None
        return Signal(activity[:ACTIVITY_CHARACTERS_MAX], session=session) if activity or session else None

    def verdict(self, spec: TaskSpec, end: Exit) -> Verdict:
        """Returns done for exit code 0 with a step that was the last one."""
        usage, step = usage_of(end), end.last.get("step_finish", {}).get("part")
        sessions = (text_of(line.get("sessionID"), SESSION_CHARACTERS_MAX) for line in end.last.values())
        session = next(filter(None, sessions), "")
        if (decided := imposed(end)) is not None:
            return Verdict(decided.kind, decided.reason, usage, session)
        if "error" in end.last:
            message, cause = error_of(end.last["error"])
            return failed(cause or Cause.CRASHED, message, usage, session)
        part = end.last.get("text", {}).get("part")
        summary = text_of(part.get("text"), SUMMARY_CHARACTERS_MAX) if isinstance(part, dict) else ""
        if not isinstance(step, dict):
            return unexplained(end, usage, session)
        if end.code != 0 or end.signal:
            return belied(end, usage, session, summary)
        if step.get("reason") != "stop":
            return failed(Cause.CRASHED, f"its last step ended with {text_of(step.get('reason'), 60)!r}", usage, session, summary)
        return Verdict(OutcomeKind.DONE, "", usage, session, summary)


def error_of(line: dict[str, Any]) -> tuple[str, Cause | None]:
    """Returns the message of an `error` line and what it means."""
    error = line.get("error")
    data = error.get("data") if isinstance(error, dict) else None
    if not isinstance(data, dict):
        return "an error without a word", None
    message = text_of(data.get("message"), SUMMARY_CHARACTERS_MAX)
    spent = of_message(message) is Cause.QUOTA
    return message, Cause.QUOTA if spent else of_status(data.get("statusCode")) or of_message(message)


ADAPTER: Final = Opencode()
