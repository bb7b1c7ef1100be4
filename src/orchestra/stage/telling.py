"""A coding agent's JSON stream as a person reads it, a line at a time."""

from __future__ import annotations

from .codec import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def short(value: Any, chars: int = 200) -> str:
    """A value on one line, cut."""
    text = value if isinstance(value, str) else dumps(value).decode("utf-8", "replace")
    text = " ".join(text[: chars * 4].split())
    return text if len(text) <= chars else text[:chars] + "…"


def _told_block(block: Any) -> list[str]:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text":
        return str(block.get("text", "")).splitlines()
    if kind == "tool_use":
        return ["> %s %s" % (block.get("name"), short(block.get("input", {})))]
    if kind == "tool_result":
        return ["< " + short(block.get("content", ""))]
    return ["(%s)" % kind] if kind else [short(block)]


def _told_message(message: Any) -> list[str] | None:
    content = message.get("content") if isinstance(message, dict) else None
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [text for block in blocks if block for text in _told_block(block)] if isinstance(blocks, list) else None


def _told_item(kind: str, item: dict[str, Any]) -> list[str]:
    """What Codex says or does, or has done."""
    over = kind == "item.completed"
    what = item.get("type")
    if what in ("agent_message", "reasoning"):
        return str(item.get("text") or "").splitlines() if over else []
    if what == "command_execution":
        output = "< exit code %s %s" % (item.get("exit_code"), short(item.get("aggregated_output") or ""))
        return [output] if over else ["> %s" % short(item.get("command", ""))]
    if what == "file_change":
        changes = item.get("changes")
        paths = (
            ["%s %s" % (each.get("kind"), each.get("path")) for each in changes if isinstance(each, dict)]
            if isinstance(changes, list)
            else []
        )
        return ["> " + ", ".join(paths)] if over else []
    return ["* %s" % short(item)] if over else []


def _told_codex(kind: str, record: dict[str, Any]) -> list[str] | None:
    if kind in ("thread.started", "turn.started"):
        return ["* %s %s" % (kind.replace(".", " "), record.get("thread_id") or "")]
    item = record.get("item")
    if kind in ("item.started", "item.completed") and isinstance(item, dict):
        return _told_item(kind, item)
    return None


def told(line: str) -> list[str]:
    """A line of a coding agent's JSON stream as a person reads it. What is not known is shown short."""
    try:
        record = loads(line)
    except ValueError:
        return [line]
    if not isinstance(record, dict) or not isinstance(record.get("type"), str):
        return [short(line)]
    kind = record["type"]
    if kind in ("assistant", "user"):
        message = _told_message(record.get("message"))
        return [short(line)] if message is None else message
    if kind == "system":
        parts = ["%s %s" % (name, record[name]) for name in ("model", "cwd", "session_id") if record.get(name)]
        return ["* %s %s" % (record.get("subtype", "system"), ", ".join(parts))]
    if kind == "result":
        parts = [str(record.get("subtype", ""))] + [
            "%s %s" % (name, record[name]) for name in ("is_error", "num_turns", "total_cost_usd") if name in record
        ]
        return ["= result: " + ", ".join(parts)] + str(record.get("result", "")).splitlines()
    if kind == "waiting":
        return ["? %s" % record.get("text"), "  (type the answer here, or: orchestra task answer)"]
    found = _told_codex(kind, record)
    return ["* %s" % short(line)] if found is None else found
