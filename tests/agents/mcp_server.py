"""A small MCP server on standard input and output: one tool, which greets, and writes whom into a file of the folder it runs in."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TOOL = {
    "name": "greet",
    "description": "Greets somebody",
    "inputSchema": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
}


def reply(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    """What a request is answered with; nothing for what is not known."""
    match method:
        case "initialize":
            info = {"name": "greeter", "version": "1"}
            return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info}
        case "tools/list":
            return {"tools": [TOOL]}
        case "tools/call":
            name = params["arguments"]["name"]
            Path("greeted.txt").write_text(f"{name}\n")
            return {"content": [{"type": "text", "text": f"Good morning, {name}, from a server of ours."}]}
        case _:
            return None


for text in sys.stdin:
    line = json.loads(text)
    if "id" in line and "method" in line:
        found = reply(line["method"], line.get("params", {}))
        error = {"error": {"code": -32601, "message": "not known"}}
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": line["id"], **({"result": found} if found is not None else error)}) + "\n")
        sys.stdout.flush()
