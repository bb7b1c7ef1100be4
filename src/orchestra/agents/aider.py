"""Kind `aider`: plain lines. It exits with 0 also when the API refused, so success needs the line in which it counts its tokens.

It says yes to all its own questions, one of which is whether to make a Git repository: so it uses Git only where the settings say so.
"""

from __future__ import annotations

import re
from typing import Any, Final

from orchestra.agents.adapter import AGENT_DIR, ATTEMPT_DIR, Context, Exit, Launch, Signal, Verdict
from orchestra.agents.causes import Cause, failed, unexplained
from orchestra.agents.ending import imposed
from orchestra.agents.kindsettings import KindSettings, plain_word
from orchestra.agents.litellm import ENV, KEYS, error_in
from orchestra.agents.prompt import PROMPT_FILE, PROXY_VARIABLES, prompt_of, wish
from orchestra.agents.shell import SUMMARY_LINES, last_lines
from orchestra.core.model import OutcomeKind, TaskSpec, Usage
from orchestra.quantity import usd_micros

SETTINGS: Final = ("model", "edit_format", "git", "base_url")
QUIET: Final = (
    "--yes-always",
    "--no-auto-commits",
    "--no-check-update",
    "--no-show-release-notes",
    "--analytics-disable",
    "--no-show-model-warnings",
    "--no-pretty",
    "--no-stream",
    "--no-suggest-shell-commands",
)
_TOKENS: Final = re.compile(r"^Tokens: ([\d.]+)(k?) sent,.*?([\d.]+)(k?) received\.(?: Cost: \$([\d.]+) message)?")
"""`Tokens: 2.3k sent, 120 received. Cost: $0.01 message, $0.01 session.`"""


def usage_of(end: Exit) -> Usage | None:
    """Returns what the last exchange consumed, or None where none was counted."""
    for line in reversed(end.tail):
        found = _TOKENS.match(line.strip())
        if found is not None:
            sent, sent_unit, received, received_unit, cost = found.groups()
            tokens = [round(float(number) * (1000 if unit else 1)) for number, unit in ((sent, sent_unit), (received, received_unit))]
            return Usage(1, tokens[0], tokens[1], cost_usd_micros=usd_micros(float(cost), field="cost") if cost else 0)
    return None


class Aider:
    """The kind's adapter; it has no state."""

    kind = "aider"
    programs: tuple[str, ...] = ("aider",)
    variables: tuple[str, ...] = (*KEYS, *PROXY_VARIABLES)
    memory_bytes: int = 260 << 20
    """Measured with 0.86.2."""

    def launch(self, spec: TaskSpec, context: Context) -> Launch:
        """Returns the process. The task's files are what it edits; its histories go to the agent's own folder."""
        settings = KindSettings(self.kind, context.settings, SETTINGS)
        model = plain_word(wish(spec, "model"), field="requirements.model") or settings.word("model")
        form, url = settings.word("edit_format"), settings.text("base_url")
        kept = {"--chat-history-file": "chat.md", "--input-history-file": "input", "--llm-history-file": "llm"}
        return Launch(
            argv=(
                *("aider", "--message-file", f"{ATTEMPT_DIR}{PROMPT_FILE}", *QUIET),
                *(part for option, name in kept.items() for part in (option, f"{ATTEMPT_DIR}aider-{name}")),
                *(("--model", model) if model else ()),
                *(("--edit-format", form) if form else ()),
                *(("--no-gitignore",) if settings.flag("git") else ("--no-git",)),
                *(plain_word(path, field="files") for path in spec.files if not path.endswith("/")),
            ),
            files={PROMPT_FILE: prompt_of(spec)},
            env={"HOME": f"{AGENT_DIR}aider", **ENV, **({"OPENAI_API_BASE": url} if url else {}), **spec.env},
            env_pass=self.variables,
            sandbox=True,
        )

    def signal(self, line: dict[str, Any]) -> Signal | None:
        """Returns None: it prints no JSON."""
        return None

    def verdict(self, spec: TaskSpec, end: Exit) -> Verdict:
        """Returns done for exit code 0 with an exchange that was counted and no error of the API after it."""
        usage = usage_of(end)
        if (decided := imposed(end)) is not None:
            return Verdict(decided.kind, decided.reason, usage or Usage())
        if (error := error_in(end)) is not None:
            return failed(error[0], error[1], usage or Usage(), "")
        if end.code != 0 or end.signal:
            return unexplained(end, usage or Usage(), "")
        if usage is None:
            return failed(Cause.CRASHED, f"exit code 0, but no exchange with the model: {last_lines(end.tail, 1)}", Usage(), "")
        return Verdict(OutcomeKind.DONE, "", usage, summary=last_lines(end.tail, SUMMARY_LINES))


ADAPTER: Final = Aider()
