"""What a coordinator may ask of a node, an op a method. docs/node.md has the requests and their replies."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any, Callable

from .claim import is_claimed
from .codec import dumps, read_json
from .folder import Folder, Refused, asked, attempt_parts, parts_of, remove_tree
from .hiding import read_hidden, secrets_of
from .lease import write_lease
from .live_workers import Workers
from .machine import Facts
from .processes import boot_id
from .reaping import Reaping
from .wire import Tail

INBOX_LINE_BYTES_MAX = 4096  # PIPE_BUF of Linux: below it a write to a FIFO is atomic
READ_BYTES_MAX = 4 << 20  # of a file, in one reply


class Operations:
    """Requests are carried out here; what is refused is raised as Refused, OSError, ValueError or TypeError."""

    def __init__(self, base: str, workers: Workers, facts: Facts, tail: Tail, reaping: Reaping) -> None:
        self.base, self.workers, self.tail, self.facts = base, workers, tail, facts
        self.secrets = secrets_of(os.environ)
        self.ops: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
            "slots": self.op_slots,
            "start": self.op_start,
            "poke": self.op_poke,
            "tail": self.op_tail,
            "inventory": self.op_inventory,
            "reap": reaping.begin,
            "read": self.op_read,
            "write": self.op_write,
            "remove": self.op_remove,
            "facts": self.op_facts,
            "lease": self.op_lease,
            "kill": self.op_kill,
        }

    def carry_out(self, request: Any) -> dict[str, Any] | None:
        """The reply; None if it comes later."""
        op = self.ops.get(str(request.get("op"))) if isinstance(request, dict) else None
        if op is None:
            raise Refused("bad-request", "no such op")
        return op(request)

    def op_slots(self, request: dict[str, Any]) -> dict[str, Any]:
        """Folders and inboxes."""
        for agent in asked(request, "agents", list):
            with Folder.walk(self.base, ["agents", *parts_of(str(agent))], make=True) as slot:
                try:
                    os.mkfifo("inbox", 0o600, dir_fd=slot.fd)
                except FileExistsError:
                    pass
        return {}

    def op_start(self, request: dict[str, Any]) -> dict[str, Any]:
        """Writes orders down and hands them out. What is not handed out is not left behind."""
        failed = []
        for order in asked(request, "orders", list):
            place = order.get("dir") if isinstance(order, dict) else None
            try:
                self._start(order, place)
            except Refused as refused:
                failed.append({"dir": place, "code": refused.code, "message": str(refused)})
            except (OSError, ValueError, TypeError) as problem:
                failed.append({"dir": place, "code": "io", "message": str(problem)})
        return {"failed": failed}

    def _start(self, order: Any, place: Any) -> None:
        *above, name = attempt_parts(place)
        try:
            with Folder.walk(self.base, above, make=True) as parent:
                self._hand_out(order, place, parent, name)
        except (OSError, ValueError, TypeError, Refused):
            self._remove_empty(above)
            raise

    def _remove_empty(self, parts: list[str]) -> None:
        """Removes the folders above an order that came to nothing, where nothing else is in them."""
        for count in range(len(parts) - 1, 0, -1):
            try:
                with Folder.walk(self.base, parts[:count]) as above:
                    os.rmdir(parts[count], dir_fd=above.fd)
            except (OSError, Refused):
                return

    def _hand_out(self, order: dict[str, Any], place: str, parent: Folder, name: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent.fd)
        except FileExistsError:
            if any(os.path.lexists("%s/%s/%s" % (self.base, place, file)) for file in ("spec.json", "claim")):
                raise Refused("exists", "%s is there already" % place) from None
            remove_tree(name, parent.fd)  # a courier died before it had written the order down
            os.mkdir(name, 0o700, dir_fd=parent.fd)
        try:
            with parent.below(name) as folder:
                for file, text in asked(order, "files", dict, {}).items():
                    if len(parts_of(file)) != 1 or not isinstance(text, str):
                        raise Refused("io", "files holds names and texts")
                    folder.write_new(file, text.encode("utf-8", "surrogatepass"))
                folder.write("spec.json", dumps(asked(order, "spec", dict)))  # last, and atomically: with it the order is complete
            self.poke(str(order.get("agent")), dumps({"op": "run", "dir": place}))
        except (OSError, ValueError, TypeError, Refused):
            remove_tree(name, parent.fd)
            raise

    def op_poke(self, request: dict[str, Any]) -> dict[str, Any]:
        """One line into an inbox."""
        line = request.get("line")
        data = dumps(line) if isinstance(line, dict) else asked(request, "line", str).strip().encode("utf-8")
        self.poke(str(request.get("agent")), data)
        return {}

    def poke(self, agent: str, line: bytes) -> None:
        """One line, whole or not at all."""
        if b"\n" in line or len(line) >= INBOX_LINE_BYTES_MAX:
            raise Refused("bad-request", "an inbox line is one line of less than %d bytes" % INBOX_LINE_BYTES_MAX)
        try:
            with Folder.walk(self.base, ["agents", *parts_of(agent)]) as slot:
                fd = os.open("inbox", os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=slot.fd)
        except OSError as problem:
            if problem.errno in (errno.ENXIO, errno.ENOENT):
                raise Refused("no-worker", "no worker reads the inbox of agent %s" % agent) from None
            raise
        try:
            os.write(fd, line + b"\n")
        except BlockingIOError:
            raise Refused("io", "the inbox of agent %s is full" % agent) from None
        except BrokenPipeError:
            raise Refused("no-worker", "the worker of agent %s has just gone" % agent) from None
        finally:
            os.close(fd)

    def op_tail(self, request: dict[str, Any]) -> dict[str, Any]:
        """From where the journal is to be sent."""
        offset = asked(request, "offset", int)
        try:
            size = os.stat(self.base + "/journal").st_size
        except FileNotFoundError:
            size = 0
        if not 0 <= offset <= size:
            raise Refused("bad-offset", "the journal has %d bytes" % size)
        self.tail.offset = offset
        return {}

    def op_inventory(self, request: dict[str, Any]) -> dict[str, Any]:
        """What there is."""
        attempts = [self._attempt_facts(place) for place in asked(request, "dirs", list, [])]
        return {"boot": boot_id(), "workers": self.workers.told(), "attempts": attempts}

    def _attempt_facts(self, place: Any) -> dict[str, Any]:
        folder = "%s/%s" % (self.base, "/".join(attempt_parts(place)))
        # The result is looked for first: what is not there yet and gets there meanwhile is told as running, which is corrected by the journal.
        result = read_json(folder + "/exit.json")
        facts = {"dir": place, "state": "absent", "alive": False, "exit": None}
        if isinstance(result, dict):
            facts.update(state="done", exit=result)
        elif is_claimed(folder):
            facts.update(state="claimed", alive=self.workers.has_in_hand(place, folder))
        elif os.path.exists(folder + "/spec.json"):
            facts.update(state="ordered")
        return facts

    def op_facts(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the machine is, how busy it is, and where it has the programs that were asked for."""
        found = self.facts.current()
        if "programs" in request:
            names = asked(request, "programs", list)
            if not all(isinstance(name, str) and name and "/" not in name and "\0" not in name for name in names):
                raise Refused("bad-request", "programs are names, without a folder")
            found["programs"] = self.facts.programs(names)
        return found

    def op_lease(self, request: dict[str, Any]) -> dict[str, Any]:
        """The coordinator is there for so long, from now on."""
        ttl_ms = asked(request, "ttl_ms", int)
        if ttl_ms < 0:
            raise Refused("bad-request", "ttl_ms is less than nothing")
        write_lease(self.base, ttl_ms)
        return {}

    def op_kill(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ends a worker that does not answer."""
        agent = "/".join(parts_of(str(request.get("agent"))))
        return {"killed": self.workers.kill(agent, asked(request, "w", str))}

    def op_read(self, request: dict[str, Any]) -> dict[str, Any]:
        """A part of a file."""
        *above, name = parts_of(request.get("path"))
        offset = asked(request, "offset", int, 0)
        length = min(max(0, asked(request, "length", int, READ_BYTES_MAX)), READ_BYTES_MAX)
        with Folder.walk(self.base, above) as folder:
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder.fd)
            except OSError as problem:
                if problem.errno == errno.ELOOP:
                    raise Refused("bad-path", "%s is a symbolic link" % name) from None
                raise
        try:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode):
                raise Refused("bad-path", "%s is not a file" % name)
            offset = max(0, facts.st_size + offset) if offset < 0 else offset
            data = read_hidden(fd, offset, length, self.secrets)
        finally:
            os.close(fd)
        return {"text": data.decode("utf-8", "replace"), "offset": offset, "size": facts.st_size}

    def op_write(self, request: dict[str, Any]) -> dict[str, Any]:
        """A whole file."""
        *above, name = parts_of(request.get("path"))
        with Folder.walk(self.base, above, make=True) as folder:
            folder.write(name, asked(request, "text", str).encode("utf-8", "surrogatepass"), asked(request, "mode", int, 0o600) & 0o777)
        return {}

    def op_remove(self, request: dict[str, Any]) -> dict[str, Any]:
        """Folders of attempts that are over."""
        removed = []
        for place in asked(request, "dirs", list):
            *above, name = attempt_parts(place)
            try:
                with Folder.walk(self.base, [*above, name]) as folder:
                    over = folder.has("exit.json") or folder.has("lost.json") or not folder.has("claim")
                if over:
                    with Folder.walk(self.base, above) as parent:
                        remove_tree(name, parent.fd)
                    removed.append(place)
            except OSError:
                continue  # it is gone already, or it cannot be removed now: the reply does not name it
        return {"removed": removed}
