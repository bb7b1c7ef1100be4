"""What a coding agent is told: the task in words, the same for every CLI."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from orchestra.agents.adapter import Context
from orchestra.core.model import TaskSpec
from orchestra.errors import BadInput
from orchestra.quantity import USD_MICROS

PROMPT_FILE: Final = "prompt.txt"
FOR_KINDS: Final = ("model", "cli", "scenario")
"""Requirements that agent kinds read, not agents."""
PROXY_VARIABLES: Final = (
    "HTTPS_PROXY",
    "https_proxy",
    "NO_PROXY",
    "no_proxy",
    "NODE_EXTRA_CA_CERTS",
    "SSL_CERT_FILE",
)
"""What lets a CLI reach its API from a network that is not open; let through from the node."""


def prompt_of(spec: TaskSpec) -> str:
    """Returns the prompt: what to do, and by what it will be judged. Sections that would be empty are left out.

    Raises:
        BadInput: There is nothing to do, or the requirements are not JSON.
    """
    content = spec.payload.content.strip()
    if not content:
        raise BadInput("is empty: there is nothing to do", field="payload.content")
    match spec.payload.type:
        case "analysis":
            told = content
        case "command":
            told = f"Run this shell script, and see to it that what it is for is done:\n\n```sh\n{content}\n```"
        case "code":
            told = f"Run this program, and see to it that what it is for is done:\n\n```{spec.payload.language}\n{content}\n```"
        case other:
            raise BadInput(f"a coding agent takes no payload of type {other[:40]!r}", field="payload.type", hint="use analysis (a prompt)")
    description = spec.description.strip()
    parts = [description, told] if description and description not in told else [told]
    if wanted := _wanted(spec):
        parts.append("What is required:\n" + "\n".join(wanted))
    if spec.criteria:
        parts.append("The work is done when:\n" + "\n".join(f"- {each}" for each in spec.criteria))
    if spec.files:
        parts.append("Change only these, relative to the working folder:\n" + "\n".join(f"- {each}" for each in spec.files))
    return "\n\n".join(parts) + "\n"


def _requirements(spec: TaskSpec) -> dict[str, Any]:
    try:
        found: Any = msgspec.json.decode(spec.requirements)
    except msgspec.DecodeError as exc:
        raise BadInput(f"is not JSON: {exc}", field="requirements") from exc
    return found if isinstance(found, dict) else {}


def _wanted(spec: TaskSpec) -> list[str]:
    """Returns the requirements one by one, as they are written; those that say how the agent itself is to be run are not its concern."""
    found = {name: value for name, value in _requirements(spec).items() if name not in FOR_KINDS}
    return [f"- {name}: {value if isinstance(value, str) else msgspec.json.encode(value).decode()}" for name, value in found.items()]


def cost_left(spec: TaskSpec, context: Context) -> str:
    """Returns what is left of the task's limit of cost, in dollars, or nothing where it has none.

    Raises:
        BadInput: Earlier attempts used all of it.
    """
    if not spec.cost_usd_micros_max:
        return ""
    left = spec.cost_usd_micros_max - context.cost_so_far_usd_micros
    if left <= 0:
        raise BadInput("earlier attempts used all of it", field="constraints.max_cost_dollars", hint="raise the task's limit of cost")
    return f"{left / USD_MICROS:.6f}"


def wish(spec: TaskSpec, name: str) -> str:
    """Returns a text the task's requirements have under this name (`model`), or nothing.

    Raises:
        BadInput: The requirements are not JSON, or it is not a text.
    """
    value = _requirements(spec).get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadInput("is not a text", field=f"requirements.{name}")
    return value.strip()
