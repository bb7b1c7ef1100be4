"""One request on the machine: its first line of input is JSON, its last line of output too."""

from __future__ import annotations

import base64
import errno
import json
import os
import signal
import sys
from typing import Any

from orchestra.workspaces.onsite import bringing, bundles, ending, merging, proofs, pruning, touched, worktrees
from orchestra.workspaces.onsite.ground import Problem

OPERATIONS = {
    "inspect": worktrees.inspect,
    "prepare": worktrees.prepare,
    "collect": worktrees.collect,
    "merge": merging.merge,
    "bring": bringing.bring,
    "touched": touched.touched,
    "tip": merging.branch_tip,
    "checkout": proofs.checkout,
    "drop_checkout": proofs.drop,
    "salvage": ending.salvage,
    "release": ending.release,
    "discard": ending.discard,
    "gc": ending.gc,
    "prune": pruning.prune,
    "receive_facts": bundles.receive_facts,
    "send_facts": bundles.send_facts,
}


def main(request: dict[str, Any]) -> None:
    """Does what was asked and prints the outcome, or the problem."""
    os.umask(0o022)  # what git writes into the user's repository; folders of ours are closed one by one
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    git = worktrees.make_git(request)
    data, out = bundles.streams()
    try:
        if request["op"] == "send":
            found: Any = bundles.send(git, request, out)
        elif request["op"] == "receive":
            found = bundles.receive(git, request, data)
        else:
            found = OPERATIONS[request["op"]](git, request)
        answer: dict[str, Any] = {"ok": found}
    except Problem as problem:
        answer = {"problem": {"code": problem.code, "message": problem.message, "hint": problem.hint}}
    except OSError as error:
        code = "disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "failed"
        answer = {"problem": {"code": code, "message": "%s: %s" % (error.filename or request["op"], error.strerror), "hint": ""}}
    out.write(b"\n" + json.dumps(answer, default=_plain).encode("ascii") + b"\n")
    out.flush()
    sys.exit(0)


def _plain(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    raise TypeError(type(value))
