"""Kind `mini-swe-agent`: plain lines and an exit code. The task is an argument, as the CLI reads it from nowhere else."""

from __future__ import annotations

from typing import Any, Final

from orchestra.agents.adapter import AGENT_DIR, ATTEMPT_DIR, Context, Exit, Launch, Signal, Verdict
from orchestra.agents.causes import failed, unexplained
from orchestra.agents.command import ARGUMENT_BYTES_MAX
from orchestra.agents.ending import imposed
from orchestra.agents.kindsettings import KindSettings, plain_word
from orchestra.agents.litellm import ENV, KEYS, error_in
from orchestra.agents.prompt import PROXY_VARIABLES, cost_left, prompt_of, wish
from orchestra.agents.shell import SUMMARY_LINES, last_lines
from orchestra.core.model import OutcomeKind, TaskSpec, Usage
from orchestra.errors import BadInput

SETTINGS: Final = ("model", "config", "base_url")


class Mini:
    """The kind's adapter; it has no state."""

    kind = "mini-swe-agent"
    programs: tuple[str, ...] = ("mini",)
    variables: tuple[str, ...] = (*KEYS, *PROXY_VARIABLES)
    memory_bytes: int = 260 << 20
    """Measured with 2.4.6."""

    def launch(self, spec: TaskSpec, context: Context) -> Launch:
        """Returns the process, which asks nobody and leaves its trajectory in the attempt's folder."""
        settings = KindSettings(self.kind, context.settings, SETTINGS)
        prompt = prompt_of(spec)
        if len(prompt.encode("utf-8", "surrogatepass")) > ARGUMENT_BYTES_MAX:
            raise BadInput(f"is longer than the {ARGUMENT_BYTES_MAX} bytes of one argument", field="payload.content", hint="use a file")
        model = plain_word(wish(spec, "model"), field="requirements.model") or settings.word("model")
        config, url = settings.word("config"), settings.text("base_url")
        left = cost_left(spec, context)
        return Launch(
            argv=(
                *("mini", f"--task={prompt}", "--yolo", "--exit-immediately", "--output", f"{ATTEMPT_DIR}trajectory.json"),
                *(("--model", model) if model else ()),
                *(("--config", config) if config else ()),
                *(("--cost-limit", left) if left else ()),
            ),
            env={
                "MSWEA_GLOBAL_CONFIG_DIR": f"{AGENT_DIR}mini",
                "MSWEA_CONFIGURED": "true",
                "MSWEA_COST_TRACKING": "ignore_errors",
                **ENV,
                **({"OPENAI_API_BASE": url} if url else {}),
                **spec.env,
            },
            env_pass=self.variables,
            sandbox=True,
        )

    def signal(self, line: dict[str, Any]) -> Signal | None:
        """Returns None: it prints no JSON."""
        return None

    def verdict(self, spec: TaskSpec, end: Exit) -> Verdict:
        """Returns done for exit code 0 without an error of the API as the last word."""
        if (decided := imposed(end)) is not None:
            return decided
        if (error := error_in(end)) is not None:
            return failed(error[0], error[1], Usage(), "")
        if end.code != 0 or end.signal:
            return unexplained(end, Usage(), "")
        return Verdict(OutcomeKind.DONE, summary=last_lines(end.tail, SUMMARY_LINES))


ADAPTER: Final = Mini()
