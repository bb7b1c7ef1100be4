"""How git is run here, and what it may not do: nothing that a repository's configuration names is started.

Two ways. `Repository.git` works on the repository itself, for what changes its refs and worktrees; hooks, fsmonitor and transports are switched off by
option, and none of the commands used runs filters or merge drivers. `Private.git` is for everything that reads or writes files, trees and commits: a git
directory of our own that borrows the repository's objects and takes over a short list of its settings, none of which names a program. So a filter or driver
that an attribute asks for does not exist there.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from contextlib import contextmanager
from typing import IO, Any, Iterator, Sequence

KEPT = ("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "XDG_CONFIG_HOME", "TZ")
"""Variables that git sees. Every `GIT_*` of the caller is dropped."""
NEUTRAL = tuple(
    part
    for setting in (
        "core.hooksPath=/dev/null",
        "core.fsmonitor=false",
        "core.untrackedCache=false",
        "core.editor=:",
        "core.pager=cat",
        "core.askPass=",
        "core.sshCommand=false",
        "core.alternateRefsCommand=",
        "core.quotePath=false",
        "credential.helper=",
        "protocol.allow=never",
        "gc.auto=0",
        "maintenance.auto=false",
        "commit.gpgSign=false",
        "submodule.recurse=false",
        "diff.ignoreSubmodules=all",
        "worktree.useRelativePaths=false",
        "index.version=2",
        "advice.detachedHead=false",
    )
    for part in ("-c", setting)
)
TAKEN_OVER = frozenset(
    ["core.autocrlf", "core.eol", "core.filemode", "core.symlinks", "core.ignorecase", "core.precomposeunicode", "core.bigfilethreshold"]
)
"""Settings that say how content lies in files; none names a program."""
LOCK_HELD = re.compile(r"Unable to create '([^'\n]+\.lock)': File exists")
CACHES = ("__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache")
"""Folders that Python's tools leave behind wherever they run; what is in them is nobody's work. Files of them that the repository has already count."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.%-]{0,199}")
SHA = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
WHO = ("orchestra", "orchestra@localhost")


class Problem(Exception):
    """What the caller is told instead of a result: a code, a sentence, what to do."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint


def expand(path: str) -> str:
    """Returns a path without `~/` and links."""
    if not path.startswith(("/", "~/")) and path != "~":
        raise Problem("bad-input", "%r is not an absolute path" % path[:200])
    return os.path.realpath(os.path.expanduser(path))


def shown(raw: bytes) -> str:
    """Returns a path as text; bytes that are no UTF-8 appear as `\\xNN`."""
    return raw.decode("utf-8", "backslashreplace")


def check_part(text: str) -> str:
    """Returns a part of a ref or path that may be used as it is."""
    if not NAME.fullmatch(text) or ".." in text or text.endswith((".", ".lock")):
        raise Problem("bad-input", "%r cannot be part of a branch" % text[:80])
    return text


def check_sha(text: str) -> str:
    """Returns the full name of a commit."""
    if not SHA.fullmatch(text):
        raise Problem("bad-input", "%r is not the full name of a commit" % text[:80])
    return text


def private_folder(*parts: str) -> str:
    """Makes a folder that is ours alone, and returns it."""
    path = os.path.join(*parts)
    os.makedirs(path, mode=0o700, exist_ok=True)
    if os.path.islink(path):
        raise Problem("refused", "%s is a link; it has to be a folder of ours" % path)
    return path


def read_json(path: str) -> dict[str, Any] | None:
    """Returns what a file of ours says, None if there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: str, value: dict[str, Any]) -> None:
    """Replaces a file of ours whole."""
    temporary = path + ".new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(temporary, path)


class Clock:
    """How long the whole request may still take, and how long a lock is waited for."""

    def __init__(self, timeout_ms: int, lock_ms: int) -> None:
        self.end = time.monotonic() + timeout_ms / 1000
        self.lock_s = lock_ms / 1000

    def left(self) -> float:
        return max(0.01, self.end - time.monotonic())


class Git:
    """Runs one git program with a clean environment."""

    def __init__(self, program: str, clock: Clock) -> None:
        self.program, self.clock = program, clock
        self.base = {name: os.environ[name] for name in KEPT if name in os.environ}
        self.base.update(
            LC_ALL="C",
            GIT_CONFIG_NOSYSTEM="1",
            GIT_ATTR_NOSYSTEM="1",
            GIT_TERMINAL_PROMPT="0",
            GIT_ASKPASS="",
            SSH_ASKPASS="",
            GIT_EDITOR=":",
            GIT_SSH_COMMAND="false",
            GIT_OPTIONAL_LOCKS="0",
            GIT_NO_LAZY_FETCH="1",
            GIT_NO_REPLACE_OBJECTS="1",
            GIT_PROTOCOL_FROM_USER="0",
            GIT_LITERAL_PATHSPECS="1",
        )
        for role in ("AUTHOR", "COMMITTER"):
            self.base.update({"GIT_%s_NAME" % role: WHO[0], "GIT_%s_EMAIL" % role: WHO[1]})

    def start(self, arguments: Sequence[str], more: dict[str, str], *, neutral: bool = True, **options: Any) -> subprocess.Popen[bytes]:
        """Starts git with these variables on top. Not `neutral`: for reading the configuration as it is."""
        try:
            return subprocess.Popen(
                [self.program, *(NEUTRAL if neutral else ()), *arguments], env=dict(self.base, **more), cwd="/", **options
            )
        except OSError as error:
            raise Problem("failed", "cannot start %s: %s" % (self.program, error.strerror), "install git 2.38 or newer there") from error

    def run(self, arguments: Sequence[str], more: dict[str, str], stdin: bytes = b"", *, neutral: bool = True) -> tuple[int, bytes, str]:
        """Runs git to its end; again while only a lock file is in the way, until its time is over."""
        until, pause = time.monotonic() + self.clock.lock_s, 0.02
        while True:
            child = self.start(arguments, more, neutral=neutral, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            try:
                out, raw = child.communicate(stdin, timeout=self.clock.left())
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()
                raise Problem("failed", "git %s did not end in time" % arguments[0], "give it more time, or look at that machine") from None
            err = raw.decode("utf-8", "replace")
            held = LOCK_HELD.search(err)
            if held is None or child.returncode == 0:
                return child.returncode, out, err
            if time.monotonic() + pause > until:
                raise Problem("locked", _lock_story(held.group(1)), "if no git runs there any more, remove that file")
            time.sleep(pause)
            pause = min(1.0, pause * 2)


def _lock_story(path: str) -> str:
    try:
        age = max(0, int(time.time() - os.stat(path).st_mtime))
    except OSError:
        return "the lock file %s came and went; something else works on this repository all the time" % path
    return "the lock file %s has been there for %d s: a git is at work, or was killed and left it" % (path, age)


def check_done(arguments: Sequence[str], done: tuple[int, bytes, str], ok: Sequence[int] = (0,)) -> bytes:
    """Returns the output, or raises what git said."""
    code, out, err = done
    if code in ok:
        return out
    if "No space left" in err or "Disk quota" in err:
        raise Problem("disk", "the disk is full: git %s: %s" % (arguments[0], err.strip()[-300:]), "free some space there")
    if "missing blob" in err or "unable to read sha1 file" in err or "promisor" in err:
        raise Problem(
            "refused", "the repository lacks objects: %s" % err.strip()[-300:], "it is a partial clone, or damaged: fetch them first"
        )
    how = "was killed by signal %d" % -code if code < 0 else "failed"
    raise Problem("failed", "git %s %s: %s" % (arguments[0], how, err.strip()[-500:]))


class Repository:
    """A repository of the user's, found from a folder in it."""

    def __init__(self, git: Git, git_dir: str, common: str, top: str, prefix: str) -> None:
        self.runner, self.git_dir, self.common, self.top, self.prefix = git, git_dir, common, top, prefix
        self.area = os.path.join(common, "orchestra")
        self._settings: dict[str, str] | None = None
        self._global = {"GIT_CONFIG_GLOBAL": "/dev/null"}

    @property
    def bare(self) -> bool:
        return not self.top

    def git(self, *arguments: str, stdin: bytes = b"", here: bool = False, ok: Sequence[int] = (0,)) -> bytes:
        """Runs git on the repository; `here`: as seen from the worktree that the folder is in."""
        return check_done(arguments, self.ask(*arguments, stdin=stdin, here=here), ok)

    def ask(self, *arguments: str, stdin: bytes = b"", here: bool = False) -> tuple[int, bytes, str]:
        """The same, with its code and errors."""
        return self.runner.run(arguments, dict(self._global, GIT_DIR=self.git_dir if here else self.common), stdin)

    def ref(self, name: str, *, here: bool = False) -> str:
        """Returns the commit that a ref names, or nothing."""
        code, out, _ = self.ask("rev-parse", "--verify", "--quiet", "--end-of-options", name + "^{commit}", here=here)
        return out.decode().strip() if code == 0 else ""

    def settings(self) -> dict[str, str]:
        """Returns the configuration, the user's own included; nothing in it is followed but includes."""
        if self._settings is None:
            raw = check_done(("config",), self.runner.run(("config", "-z", "--list"), {"GIT_DIR": self.git_dir}, neutral=False))
            pairs = [entry.partition("\n") for entry in raw.decode("utf-8", "replace").split("\0") if entry]
            self._settings = {key: value if mark else "true" for key, mark, value in pairs}
        return self._settings

    def content_settings(self) -> dict[str, str]:
        """Returns the settings that a private git directory takes over."""
        found = {key: value for key, value in self.settings().items() if key in TAKEN_OVER and re.fullmatch(r"[A-Za-z0-9]{1,20}", value)}
        excludes = os.path.expanduser(self.settings().get("core.excludesfile", ""))
        if excludes.startswith("/") and os.path.isfile(excludes) and not re.search(r'["\\\n\0]', excludes):
            found["core.excludesfile"] = '"%s"' % excludes
        return found

    @property
    def object_format(self) -> str:
        return "sha256" if self.settings().get("extensions.objectformat", "sha1") == "sha256" else "sha1"

    @property
    def zero(self) -> str:
        return "0" * (64 if self.object_format == "sha256" else 40)

    def update_ref(self, name: str, new: str, old: str, why: str) -> None:
        """Moves a ref from `old` (empty: it must not exist) to `new` (empty: it is deleted) in one step.

        Raises:
            Problem: `stale` when it was not at `old`.
        """
        verb = ("update-ref", "-m", why, "--create-reflog", name, new, old or self.zero) if new else ("update-ref", "-d", name, old)
        code, out, err = self.ask(*verb)
        if code and ("but expected" in err or ("already exists" in err and "reference" in err) or "unable to resolve" in err):
            raise Problem("stale", "%s moved while we worked: %s" % (name, err.strip()[-300:]), "somebody else wrote it; look again")
        if code and ("exists; cannot create" in err or "Not a directory" in err):
            raise Problem("refused", "%s is in the way of another branch: %s" % (name, err.strip()[-200:]), "rename that branch")
        check_done(verb, (code, out, err))

    @contextmanager
    def locked(self, what: str) -> Iterator[None]:
        """Holds the one lock of this repository; who holds it is written in it."""
        path = os.path.join(private_folder(self.area), "lock")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._take(handle, path)
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"pid": os.getpid(), "what": what, "since": int(time.time())}).encode(), 0)
            yield
            os.ftruncate(handle, 0)
        finally:
            os.close(handle)

    def _take(self, handle: int, path: str) -> None:
        def late(signum: int, frame: object) -> None:
            raise TimeoutError

        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, self.runner.clock.lock_s))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except TimeoutError:
            owner = read_json(path) or {}
            held = "process %s (%s)" % (owner["pid"], owner.get("what")) if owner.get("pid") else "a process that did not write its name"
            raise Problem("locked", "%s holds the lock %s" % (held, path), "wait for it, or end it if it hangs") from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def private(self, folder: str, *, work_tree: str = "", index: str = "", attributes: str = "") -> Private:
        """Returns a git directory of our own over this repository's objects; `attributes`: the commit whose top `.gitattributes` hold."""
        return Private(self, folder, work_tree, index, attributes)


def _read_back(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


class Private:
    """A short-lived git directory with nothing in it that can run."""

    def __init__(self, repo: Repository, folder: str, work_tree: str, index: str, attributes: str) -> None:
        self.repo, self.attributes = repo, attributes
        self.path = tempfile.mkdtemp(prefix="git-", dir=private_folder(folder, "private"))
        self.index = index or os.path.join(self.path, "index")
        self.more = {
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_DIR": self.path,
            "GIT_OBJECT_DIRECTORY": os.path.join(repo.common, "objects"),
            "GIT_INDEX_FILE": self.index,
            "GIT_SHALLOW_FILE": os.path.join(repo.common, "shallow"),
        }
        if work_tree:
            self.more["GIT_WORK_TREE"] = work_tree

    def __enter__(self) -> Private:
        for name in ("refs", "objects", "info"):
            os.mkdir(os.path.join(self.path, name))
        bare = "false" if "GIT_WORK_TREE" in self.more else "true"
        lines = ["[core]", "\trepositoryformatversion = 1", "\tbare = " + bare]
        lines += ["\t%s = %s" % (key.partition(".")[2], value) for key, value in sorted(self.repo.content_settings().items())]
        lines += ["[extensions]", "\tobjectformat = " + self.repo.object_format]
        self._write("HEAD", b"ref: refs/heads/none\n")
        self._write("config", ("\n".join(lines) + "\n").encode())
        for name in ("exclude", "attributes"):
            source = os.path.join(self.repo.common, "info", name)
            if os.path.isfile(source):
                shutil.copyfile(source, os.path.join(self.path, "info", name))
        with open(os.path.join(self.path, "info", "exclude"), "ab+") as file:
            own = _read_back(file)
            file.truncate(0)
            file.write("".join("%s/\n" % name for name in CACHES).encode() + own)  # first, so that the repository's own words go before
        if self.attributes:
            code, out, _ = self.ask("cat-file", "blob", self.attributes + ":.gitattributes")
            if code == 0:
                # A bare git directory reads none from trees; those of the top folder are enough for `merge=union` and `-text`.
                with open(os.path.join(self.path, "info", "attributes"), "ab+") as file:
                    own = _read_back(file)
                    file.truncate(0)
                    file.write(out + b"\n" + own)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _write(self, name: str, data: bytes) -> None:
        with open(os.path.join(self.path, name), "wb") as file:
            file.write(data)

    def git(self, *arguments: str, stdin: bytes = b"", ok: Sequence[int] = (0,)) -> bytes:
        """Runs git and returns what it printed."""
        return check_done(arguments, self.ask(*arguments, stdin=stdin), ok)

    def ask(self, *arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        """The same, with its code and errors."""
        return self.repo.runner.run(arguments, self.more, stdin)

    def is_ancestor(self, older: str, newer: str) -> bool:
        """Tells whether everything in `older` is in `newer`."""
        return self.ask("merge-base", "--is-ancestor", older, newer)[0] == 0

    def tree(self, commit: str) -> str:
        return self.git("rev-parse", "--verify", "--end-of-options", commit + "^{tree}").decode().strip()

    def commit(self, tree: str, parents: Sequence[str], message: str) -> str:
        """Writes a commit and returns its name. Nobody's hooks or keys have a part in it."""
        flags = [part for parent in parents for part in ("-p", parent)]
        return self.git("commit-tree", tree, *flags, "-F", "-", stdin=message.encode()).decode().strip()

    def head_of(self, *arguments: str, limit: int) -> tuple[bytes, bool]:
        """Returns the first part of what git prints, and whether there was more. The rest is not waited for."""
        child = self.repo.runner.start(arguments, self.more, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert child.stdout is not None
        with child.stdout:
            data = child.stdout.read(limit + 1)
        if len(data) > limit:
            child.kill()
        child.wait()
        return data[:limit], len(data) > limit


def find(git: Git, folder: str) -> Repository | None:
    """Returns the repository that a folder is part of, None if it is part of none.

    Git itself judges here, with the user's own settings, so that `safe.directory` holds as everywhere.
    """
    if not os.path.isdir(folder):
        raise Problem("not-found", "there is no folder %s" % folder)
    asked = (
        "-C",
        folder,
        "rev-parse",
        "--path-format=absolute",
        "--is-bare-repository",
        "--is-inside-work-tree",
        "--git-common-dir",
        "--git-dir",
    )
    code, out, err = git.run(asked, {})
    if code:
        if "not a git repository" in err:
            return None
        if "dubious ownership" in err:
            raise Problem(
                "refused", "%s belongs to another user" % folder, "trust it with `git config --global --add safe.directory %s`" % folder
            )
        raise Problem("refused", "git cannot read %s: %s" % (folder, err.strip()[-300:]))
    bare, inside, common, git_dir = out.decode("utf-8", "surrogateescape").rstrip("\n").split("\n")
    if bare == "true":
        return Repository(git, git_dir, common, "", "")
    if inside != "true":
        raise Problem("refused", "%s is inside a .git folder" % folder, "name the checkout itself")
    top = (
        check_done(("rev-parse",), git.run(("-C", folder, "rev-parse", "--show-toplevel"), {}))
        .decode("utf-8", "surrogateescape")
        .rstrip("\n")
    )
    prefix = os.path.relpath(folder, top)
    repo = Repository(git, git_dir, common, top, "" if prefix == "." else prefix)
    if repo.prefix and repo.ask("rev-parse", "--verify", "--quiet", "HEAD:" + repo.prefix, here=True)[0]:
        return None  # an untracked folder below somebody's repository, such as a home folder that is one
    return repo


def is_plain_file(path: str) -> bool:
    """Tells whether there is a file itself, with one name."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1
