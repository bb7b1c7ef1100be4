"""What an attempt is asked to return besides its work: one small file, read when the agent has ended well."""

from __future__ import annotations

import os
import stat

from .codec import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FOLDER = "return"  # one of its own: an agent in a sandbox is let write there, and not to the order or the result
FILE = "return/answer.json"
RETURN_BYTES_MAX = 40960  # as JSON text in a record of 64 KB, beside the exit and the checks


def make_place(folder: str) -> None:
    """Makes the folder for it."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass


def returned(folder: str) -> dict[str, Any]:
    """`text`, or `error` with what is wrong with it."""
    try:
        fd = os.open("%s/%s" % (folder, FILE), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return {"error": "nothing was returned: there is no file at $ORCHESTRA_RETURN"}
    except OSError as problem:
        return {"error": "what was returned cannot be read: %s" % problem.strerror}
    data = b""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return {"error": "what was returned is no plain file"}
        while len(data) <= RETURN_BYTES_MAX:
            part = os.read(fd, RETURN_BYTES_MAX + 1 - len(data))
            if not part:
                break
            data += part
        text = data.decode("utf-8")
    except OSError as problem:
        return {"error": "what was returned cannot be read: %s" % problem.strerror}
    except UnicodeDecodeError as problem:
        if len(data) <= RETURN_BYTES_MAX:
            return {"error": "what was returned is not UTF-8: byte %d" % problem.start}
        text = ""
    finally:
        os.close(fd)
    if len(data) > RETURN_BYTES_MAX or len(dumps(text)) > RETURN_BYTES_MAX:
        return too_large()
    return {"text": text}


def too_large() -> dict[str, Any]:
    """What is said of one that does not fit in a record."""
    return {"error": "what was returned is too large: it may have %d bytes" % RETURN_BYTES_MAX}
