"""What a session of Claude Code said and consumed, and why the API did not answer it, by the file it keeps of it."""

from __future__ import annotations

import glob
import json
import os
from typing import Any, Iterator

NAMES = (
    ("inputTokens", "input_tokens"),
    ("outputTokens", "output_tokens"),
    ("cacheReadInputTokens", "cache_read_input_tokens"),
    ("cacheCreationInputTokens", "cache_creation_input_tokens"),
)
"""As the account calls them, and as the replies do."""
FAILURES = (("apiError", "api_error"), ("apiErrorStatus", "api_error_status"), ("apiErrorType", "api_error_type"))
"""As the file calls them, and as a result does."""


class Transcript:
    """What one session adds to its file from now on; with that of the session before it, should there have been another.

    A session that is gone on with in another folder stays in the file it had, whatever its hooks say of its place. So it is looked for by its id.
    """

    def __init__(self, session: str, before: Transcript | None = None) -> None:
        self.session, self.before = session, before
        self.account_before: dict[str, dict[str, Any]] = {}
        self.sizes: dict[str, int] = {}
        self.taken: dict[str, int] = {}
        for path in self._paths():
            self.taken[path] = self.sizes[path] = os.stat(path).st_size
            for line in lines_of(path, 0):
                if line.get("type") == "cost-state":
                    self.account_before = models_in(line)

    def _paths(self) -> list[str]:
        place = os.path.join(os.environ.get("CLAUDE_CONFIG_DIR", ""), "projects")
        return glob.glob("%s/*/%s.jsonl" % (glob.escape(place), glob.escape(self.session)))

    def _added(self) -> Iterator[dict[str, Any]]:
        return (line for path in self._paths() for line in lines_of(path, self.sizes.get(path, 0)))

    def news(self, bytes_max: int) -> bytes:
        """The lines that were added since this was last asked, whole ones only and no more than that."""
        found = b""
        for path in self._paths():
            try:
                with open(path, "rb") as file:
                    file.seek(self.taken.get(path, 0))
                    data = file.read(bytes_max - len(found))
            except OSError:
                continue
            whole = data[: data.rfind(b"\n") + 1]
            self.taken[path] = self.taken.get(path, 0) + len(whole)
            found += whole
        return found

    def failure(self) -> dict[str, Any]:
        """The fields of a result that tell how the API failed it last; empty if it did not. The hook has the words for it, and not the whole kind of error."""
        found: dict[str, Any] = {}
        for line in self._added():
            if line.get("isApiErrorMessage") is True:
                message = line.get("message")
                found = {field: line[name] for name, field in FAILURES if line.get(name) is not None}
                if isinstance(message, dict) and message.get("stop_reason") == "refusal":
                    found["stop_reason"] = "refusal"
        return found

    def consumed(self) -> dict[str, Any]:
        """The fields of a result: how many replies, and tokens and cost by model.

        Claude Code writes its own account as it ends, over the whole session and with what its sub-agents used. Where it could not, the replies in
        the file are counted, each once, although it stands there once for each of its blocks.
        """
        replies: dict[str, dict[str, int]] = {}
        models: dict[str, dict[str, Any]] = {}
        account: dict[str, Any] | None = None
        for line in self._added():
            message = line.get("message")
            if line.get("type") == "cost-state":
                account = models_in(line)
            elif line.get("type") == "assistant" and isinstance(message, dict) and isinstance(message.get("id"), str):
                usage, model = message.get("usage"), str(message.get("model"))
                counts = (
                    {counter: usage[name] for counter, name in NAMES if isinstance(usage.get(name), int)} if isinstance(usage, dict) else {}
                )
                earlier = replies.get(message["id"], {})
                known = models.setdefault(model, dict.fromkeys((counter for counter, _ in NAMES), 0))
                for counter, count in counts.items():
                    known[counter] += count - earlier.get(counter, 0)
                replies[message["id"]] = counts
        turns = len(replies)
        if account is not None:
            models = {model: less(usage, self.account_before.get(model, {})) for model, usage in account.items()}
        if self.before is not None:
            told = self.before.consumed()
            turns += told["num_turns"]
            models.update(("%s (before)" % model, usage) for model, usage in told["model_usage_since_last_result"].items())
        return {"num_turns": turns, "model_usage_since_last_result": models}


def lines_of(path: str, start: int) -> Iterator[dict[str, Any]]:
    """The lines that tell of usage, from a place in the file on."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            for line in file:
                if b'"cost-state"' not in line and b'"usage"' not in line:
                    continue
                try:
                    found = json.loads(line)
                except ValueError:
                    continue
                if isinstance(found, dict):
                    yield found
    except OSError:
        return


def models_in(account: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What an account says, by model."""
    found = account.get("modelUsage")
    return {model: usage for model, usage in found.items() if isinstance(usage, dict)} if isinstance(found, dict) else {}


def less(usage: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """What was used since, figure by figure."""
    figures = [name for name, _ in NAMES] + ["costUSD"]
    return {name: max(0, number(usage.get(name)) - number(before.get(name))) for name in figures}


def number(value: Any) -> float:
    """A figure, or 0."""
    return value if isinstance(value, (int, float)) else 0
