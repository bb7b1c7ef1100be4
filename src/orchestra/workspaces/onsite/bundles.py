"""Commits on their way between two machines: a line of JSON, a git bundle cut into frames `<length>\\n<bytes>`, and a last `0\\n`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from typing import Any, BinaryIO

from orchestra.workspaces.onsite.ground import Git, Private, Problem, Repository, check_sha, expand, find, private_folder

FRAME_BYTES = 256 << 10
REF = re.compile(r"refs/(heads|orchestra)/[A-Za-z0-9_][A-Za-z0-9_.%/-]{0,300}")


def _repository(git: Git, request: dict[str, Any]) -> Repository:
    repo = find(git, expand(request["repo"]))
    if repo is None:
        raise Problem("not-found", "%s is no repository" % request["repo"])
    return repo


def receive_facts(git: Git, request: dict[str, Any]) -> dict[str, Any]:
    """Tells what the receiving side has; with `make`, makes the bare repository there first if there is none, or only a part of one."""
    path = request["repo"]
    path = os.path.realpath(os.path.expanduser(path)) if path.startswith("~/") else path
    if request["make"] and not os.path.isdir(os.path.join(path, "objects", "pack")):
        # Git makes this folder last, and begins anew without harm where it was killed before.
        private_folder(path)
        asked = ("init", "--quiet", "--bare", "--template=", "--initial-branch=start", "--object-format=" + request["object_format"], path)
        code, _, err = git.run(asked, {"GIT_CONFIG_GLOBAL": "/dev/null"})
        if code:
            raise Problem("failed", "git init %s: %s" % (path, err.strip()[-300:]))
    repo = _repository(git, request)
    tips = repo.git("for-each-ref", "--format=%(objectname) %(objecttype)").decode().splitlines()
    return {
        "repo": path,
        "have": sorted({line.split(" ")[0] for line in tips if line.endswith(" commit")})[-2000:],
        "shallow": _lines(os.path.join(repo.common, "shallow")),
        "object_format": repo.object_format,
    }


def send_facts(git: Git, request: dict[str, Any]) -> dict[str, Any]:
    """Tells what the sending side is: the format of its names, and the commits that were asked for by ref."""
    repo = _repository(git, request)
    found = {name: repo.ref(name, here=True) for name in request["refs"]}
    return {"object_format": repo.object_format, "refs": found}


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def send(git: Git, request: dict[str, Any], out: BinaryIO) -> dict[str, Any]:
    """Writes a bundle of the commits that the other side lacks; no bytes at all if it has them all."""
    repo = _repository(git, request)
    wanted = {name: check_sha(sha) for name, sha in request["wanted"].items()}
    for sha in wanted.values():
        if not repo.ref(sha):
            raise Problem("not-found", "the repository has no commit %s" % sha)
    with repo.private(request_folder(request)) as private:
        have = _known(private, [check_sha(sha) for sha in request["have"]])
        cut = _boundary(private, repo, request, wanted, have)
        if cut:
            limits = os.path.join(private.path, "shallow")
            with open(limits, "w", encoding="ascii") as file:
                file.write("".join(sha + "\n" for sha in cut))
            private.more["GIT_SHALLOW_FILE"] = limits
        missing = private.git("rev-list", "--max-count=1", *sorted(set(wanted.values())), "--not", *have)
        if not missing.strip():
            out.write(b'{"shallow": []}\n0\n')
            return {"bytes": 0}
        names = []
        for number, sha in enumerate(sorted(set(wanted.values()))):
            names.append("refs/heads/w%d" % number)
            private.git("update-ref", names[-1], sha)
        fresh = [sha for sha in cut if sha not in request["shallow"]]
        out.write(json.dumps({"shallow": fresh}).encode() + b"\n")
        count = _stream(private, ("bundle", "create", "--quiet", "-", *names, "--not", *have), out)
        return {"bytes": count}


def request_folder(request: dict[str, Any]) -> str:
    """Returns where short-lived files go."""
    return private_folder(expand(request["folder"]))


def _known(private: Private, shas: list[str]) -> list[str]:
    """Returns those commits that are here too."""
    said = private.git("cat-file", "--batch-check=%(objectname) %(objecttype)", stdin="".join(sha + "\n" for sha in shas).encode())
    return [line.split(" ")[0] for line in said.decode().splitlines() if line.endswith(" commit")]


def _boundary(private: Private, repo: Repository, request: dict[str, Any], wanted: dict[str, str], have: list[str]) -> list[str]:
    """Returns the commits whose parents the other side will not have."""
    if have and request["shallow"]:
        return [check_sha(sha) for sha in request["shallow"]]
    own = _lines(os.path.join(repo.common, "shallow"))
    if have or own:
        return own
    counts = dict(line.split(": ") for line in repo.git("count-objects", "-v").decode().splitlines() if ": " in line)
    large = 1024 * (int(counts.get("size", 0)) + int(counts.get("size-pack", 0))) > request["history_bytes_max"]
    return sorted(set(wanted.values())) if large else []


def _stream(private: Private, arguments: tuple[str, ...], out: BinaryIO) -> int:
    with tempfile.TemporaryFile() as errors:
        child = private.repo.runner.start(arguments, private.more, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        assert child.stdout is not None
        count = 0
        with child.stdout:
            for block in iter(lambda: child.stdout.read(FRAME_BYTES), b""):  # type: ignore[union-attr]
                out.write(b"%d\n" % len(block) + block)
                count += len(block)
        if child.wait():
            errors.seek(0)
            raise Problem("failed", "git bundle failed: %s" % errors.read().decode("utf-8", "replace").strip()[-300:])
    out.write(b"0\n")
    return count


def receive(git: Git, request: dict[str, Any], data: BinaryIO) -> dict[str, Any]:
    """Takes in the commits of a bundle and puts refs on them. The refs are moved only when all their objects are here."""
    repo = _repository(git, request)
    folder = request_folder(request)
    count = 0
    shallow = json.loads(data.readline(1 << 20) or b"null")
    if not isinstance(shallow, dict):
        raise Problem("failed", "the bundle never began", "try again")
    with tempfile.NamedTemporaryFile(dir=private_folder(folder, "private"), prefix="bundle-") as file:
        while True:
            length = int(data.readline(20) or b"-1")
            if length <= 0:
                break
            count += length
            if count > request["bundle_bytes_max"]:
                raise Problem("refused", "the bundle has more than %d bytes" % request["bundle_bytes_max"], "raise that setting")
            file.write(data.read(length))
        if length < 0:
            raise Problem("failed", "the bundle ended in the middle", "try again")
        file.flush()
        with repo.locked("receive"):
            # A commit that is here with its history keeps it: only what arrives without is noted as such.
            cut = [sha for sha in shallow["shallow"] if not repo.ref(check_sha(sha))]
            if cut and not request["mirror"]:
                raise Problem("refused", "the history that the work builds on is not here: %s" % cut[0], "bring that commit back first")
            if count:
                _unpack(repo, file.name, request["strict"])
                _add_shallow(repo, cut)
            for name, sha in sorted(request["wanted"].items()):
                _put(repo, name, check_sha(sha), force=request["force"])
    return {"bytes": count, "refs": request["wanted"]}


def _unpack(repo: Repository, path: str, strict: bool) -> None:
    """Takes in the pack of a bundle. Its header names what it builds on; that has to be here."""
    with open(path, "rb") as file:
        lines = []
        for raw in iter(lambda: file.readline(5000), b"\n"):
            if not raw:
                raise Problem("failed", "what came is no bundle")
            lines.append(raw.decode("utf-8", "replace").rstrip("\n"))
        if not lines or not re.fullmatch(r"# v[23] git bundle", lines[0]):
            raise Problem("failed", "what came is no bundle")
        for line in lines[1:]:
            if line.startswith("-") and not repo.ref(check_sha(line[1:].split(" ")[0])):
                raise Problem("failed", "the bundle builds on %s, which is not here" % line[1:60], "send it again")
        pack = file.read()
    flags = ("--strict",) if strict else ()
    repo.git("index-pack", "--stdin", "--fix-thin", *flags, stdin=pack)


def _add_shallow(repo: Repository, shas: list[str]) -> None:
    path = os.path.join(repo.common, "shallow")
    known = _lines(path)
    new = [check_sha(sha) for sha in shas if sha not in known]
    if new:
        with open(path + ".orchestra", "w", encoding="ascii") as file:
            file.write("".join(sha + "\n" for sha in known + new))
        os.replace(path + ".orchestra", path)


def _put(repo: Repository, name: str, sha: str, *, force: bool) -> None:
    if not REF.fullmatch(name) or ".." in name or "//" in name or name.endswith((".", "/", ".lock")):
        raise Problem("bad-input", "%r is no ref of ours" % name[:80])
    if not repo.ref(sha):
        raise Problem("failed", "%s did not arrive" % sha)
    walked, _, err = repo.ask("rev-list", "--objects", "--quiet", sha, "--not", "--all")
    if walked:
        raise Problem("failed", "%s arrived without all that it needs: %s" % (sha, err.strip()[-200:]), "send it again")
    old = repo.ref(name)
    if old == sha:
        return
    if old and not force:
        raise Problem("stale", "%s is at %s already" % (name, old), "an attempt's result never changes; use a new attempt number")
    repo.update_ref(name, sha, old, "orchestra: received")


def streams() -> tuple[BinaryIO, BinaryIO]:
    """Returns this program's input and output as bytes."""
    return sys.stdin.buffer, sys.stdout.buffer
