"""An agent that asks its model API a few times, one after the other, and says how many answers it got. Run as a program; standard library only."""

import json
import os
import sys
import urllib.error
import urllib.request

CAUSES = {401: "auth", 402: "budget", 403: "auth", 429: "rate-limited"}
TIMEOUT_S = 600


def say(line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> int:
    turns = int(sys.argv[1])
    body = json.dumps({"model": "claude-haiku-4-5", "max_tokens": 16, "messages": [{"role": "user", "content": "Go on."}]}).encode()
    head = {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "anthropic-version": "2023-06-01", "content-type": "application/json"}
    request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", body, head)
    error = ""
    for turn in range(turns):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                json.load(answer)
            say({"type": "answer", "number": turn + 1})
        except urllib.error.HTTPError as refusal:
            error = f"{CAUSES.get(refusal.code, 'overloaded')}: {refusal.code} after {turn} answers"
        except OSError as trouble:
            error = f"network: {str(trouble)[:100]} after {turn} answers"
        if error:
            break
    say({"type": "result", "error": error} if error else {"type": "result", "summary": f"{turns} answers"})
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main())
