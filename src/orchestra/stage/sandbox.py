"""What a sandboxed program sees of the machine: `bwrap` is put before its command line, and each of its folders gets a part to play.

Everything can be read and nothing written, but for this:

- Hidden: the node's folder with the journal and the other attempts, what the order names (the coordinator's ledger, queue and sockets), the folders where
  sockets lie (`/tmp`, `/run`), and the home folder. What is hidden is empty and cannot be written.
- Shown again out of that: programs and what belongs to them, found by PATH, by the program itself and by a list of usual places.
- Writable: the attempt's working folder and worktree, the agent's own folder, and private ones of the attempt in the place of the home folder, of /tmp
  and of the attempt's folder. Those are on the disk (`scratch`), so that checks find what the agent left, and go with the attempt.

Processes are in a name space of their own, whose end is the end of every one in it, whatever session it is in. The network stays: models are reached by it.
"""

from __future__ import annotations

import os

from .sandbox_probe import SANDBOX_OPTIONS, problem_with
from .spawning import found_program
from .temporary import ENTRIES_AT_ONCE, REMOVE, removed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

HOME_SHOWN = (
    *(
        ".nvm",
        ".volta",
        ".fnm",
        ".asdf",
        ".nodenv",
        ".bun/bin",
        ".deno/bin",
        ".npm-global",
        ".npm-packages",
        ".opencode/bin",
        ".claude/local",
    ),
    *(".local/bin", ".local/lib", ".local/pipx", ".pyenv", ".rbenv", ".goenv", ".jenv", ".sdkman", ".dotnet", ".rustup", ".cargo/bin"),
    *(
        ".ghcup/bin",
        ".ghcup/ghc",
        ".opam",
        ".elan",
        ".julia/juliaup",
        ".conda/envs",
        ".config/git",
        ".gitconfig",
        ".gitignore",
        ".gitattributes",
    ),
    *(".local/share/" + name for name in ("claude", "uv", "pipx", "pnpm", "mise", "fnm", "nvm", "node", "virtualenvs", "rtx", "bun")),
    *("bin", "go/bin", "miniconda3", "anaconda3", "miniforge3", "mambaforge", "google-cloud-sdk"),
)
"""Below the home folder: where toolchains install themselves, and how git is to name the author. No place for credentials is among them."""

HOME_HIDDEN = (
    *(
        ".ssh",
        ".gnupg",
        ".aws",
        ".azure",
        ".kube",
        ".docker",
        ".netrc",
        ".git-credentials",
        ".npmrc",
        ".yarnrc.yml",
        ".pypirc",
        ".pgpass",
        ".my.cnf",
    ),
    *(
        ".claude",
        ".claude.json",
        ".codex",
        ".gemini",
        ".aider.conf.yml",
        ".env",
        ".password-store",
        ".mozilla",
        ".thunderbird",
        ".vault-token",
    ),
    *(".cargo/credentials", ".cargo/credentials.toml", ".gem/credentials", ".m2/settings.xml", ".gradle/gradle.properties", ".terraform.d"),
    *(
        ".config/" + name
        for name in ("gh", "hub", "glab-cli", "gcloud", "op", "rclone", "google-chrome", "chromium", "git/credentials", "pip")
    ),
    *(".local/share/" + name for name in ("keyrings", "opencode")),
    *(".local/state/orchestra", ".bash_history", ".zsh_history", ".python_history"),
)
"""Keys, logins and what people typed: hidden also where the home folder itself, or one above it, is the folder that is worked in."""

HIDDEN = (
    "/run",
    "/var/run",
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/ssh",
    "/etc/ssl/private",
    "/etc/kubernetes",
    "/var/lib/kubelet",
    "/var/spool/cron",
)
HIDDEN_FROM_ROOT = ("/home", "/root")
"""An ordinary user has no right to these; whoever is root has, until they are hidden."""
RUN_SHOWN = ("/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager", "/run/current-system", "/run/wrappers")
"""Where /etc/resolv.conf leads on some systems, and where the programs are on others."""
PRIVATE_TMP = ("/tmp", "/var/tmp")

BESIDE_PROGRAMS = ("lib", "lib64", "libexec", "share", "include", "node_modules", "versions", "pyvenv.cfg")
"""What a program may need from beside the `bin` it is in; not the whole folder around it, where a credential may lie."""
LINKS_MAX = 40  # as in the kernel
INTERPRETERS = ("node", "python3", "python", "git")
WRITTEN = ("return", "reports")
"""Folders of the attempt that are written from inside: what the agent returns, and what checks report."""
OWN_FILES = ("spec", "claim", "exit", "lost", "output", "scratch", "tmp", "work", *WRITTEN)
"""What the worker keeps in the attempt's folder, up to the first dot. Whoever could write there could say how the attempt ended."""

READABLE, EMPTY = ("ro", "show", "link"), ("hide", "private")


class Unavailable(OSError):
    """There is no sandbox to be had here."""


def real(path: str) -> str:
    """Without links; `~` is the home folder."""
    return os.path.realpath(os.path.expanduser(path))


def inside(path: str, folder: str) -> bool:
    """Whether it is that folder or below it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


class Ground:
    """Which part each folder plays. For one path the first word counts, and of two paths the longer one."""

    def __init__(self) -> None:
        self.parts: dict[str, tuple[str, str]] = {}  # path -> (part, what is put there)

    def add(self, part: str, path: str, source: str = "") -> None:
        """One folder or file. What is not there needs no part."""
        path = os.path.normpath("/" + path.lstrip("/"))
        if os.path.lexists(path) or source:
            self.parts.setdefault(path, (part, source or path))

    def above(self, path: str) -> str:
        """The part of what a path lies in, apart from itself."""
        return "ro" if path == "/" else self.part_of(os.path.dirname(path))

    def part_of(self, path: str) -> str:
        """The part of a path: its own, or that of what it lies in."""
        while path not in self.parts and path != "/":
            path = os.path.dirname(path)
        return self.parts[path][0] if path in self.parts else "ro"

    def arguments(self) -> Iterator[str]:
        """For bwrap, from the top down: what is mounted later lies upon what was mounted before."""
        sealed = []
        for path in sorted(self.parts, key=lambda path: path.split("/")):
            part, source = self.parts[path]
            above = self.above(path)
            if (part in READABLE and above in READABLE) or (part == "show" and above == "rw") or (part == "hide" and above in EMPTY):
                continue  # it is so already
            if part == "hide" and not os.path.isdir(path):
                yield from ("--ro-bind", "/dev/null", path)
            elif part == "hide":
                yield from ("--tmpfs", path)
                sealed.append(path)
            elif part == "link":
                yield from ("--symlink", source, path)
            else:
                yield from ("--bind" if part in ("rw", "private") else "--ro-bind", source, path)
        for path in sealed:
            yield from ("--remount-ro", path)


class Sandbox:
    """The sandbox of one attempt: for its agent and, one after another, its checks."""

    def __init__(self, base: str, folder: str, agent: str, cwd: str, env: dict[str, str], path: str, wanted: dict[str, Any]) -> None:
        self.folder = real(folder)
        self.scratch = self.folder + "/scratch"
        self.cwd, self.env, self.wanted = real(cwd), env, wanted
        self.base, self.agent = real(base), agent
        self.git: Any = None  # how commits get out of it, see sandbox_git
        self.writable = [self.cwd, *map(real, wanted.get("writable", ()))]
        # For what is run outside of it: nothing that an agent could have put somewhere, whatever PATH the task has.
        trusted = [
            place for place in path.split(":") if os.path.isabs(place) and not any(inside(real(place), one) for one in self.writable)
        ]
        self.path = ":".join(trusted)
        try:
            self.program = found_program("bwrap", self.path)
        except OSError:
            raise Unavailable("bwrap is not installed") from None
        problem = problem_with(self.program)
        if problem:
            raise Unavailable("bwrap does not work here: " + problem)

    def prepare(self) -> None:
        """Makes its private folders and finds out what is to be seen. Before the agent starts: whatever it leaves has no say in it."""
        for name in ("", "/home", "/tmp", "/here"):
            os.mkdir(self.scratch + name, 0o700)
        self.env["TMPDIR"] = "/tmp"
        own = "%s/homes/%s" % (self.base, self.agent)
        os.makedirs(own, mode=0o700, exist_ok=True)
        ground = self.ground = Ground()
        wanted = self.wanted
        if wanted.get("worktree"):
            from .sandbox_git import Repository

            self.git = Repository(wanted["worktree"], self.scratch)
            self.git.show(ground)
        for path in (*self.writable, own):
            ground.add("rw", path)
        self._shared_repository()
        for path in wanted.get("hide", ()):
            ground.add("hide", real(path))
        for path in wanted.get("readable", ()):
            ground.add("ro", real(path))
        self._own_folder()
        ground.add("hide", self.base)
        ground.add("show", self.base + "/stage")
        self._system()
        self._homes()
        self._programs()

    def argv(self, argv: list[str]) -> list[str]:
        """The command line that runs this one inside. How the program ended comes on descriptor 3, if it could be started at all."""
        self._show_program(argv[0])
        if argv[1:4] == ["-I", "-S", "-c"]:  # a program of the stage, which is told by name what to drive
            for word in argv[6:]:
                if "/" not in word:
                    self._show_program(word)
        return [self.program, *SANDBOX_OPTIONS, *self.ground.arguments(), "--json-status-fd", "3", "--chdir", self.cwd, "--", *argv]

    def _shared_repository(self) -> None:
        """A repository around the folder that is worked in can be read; and whoever writes its hooks has the user's own git run what they say."""
        top, home = self.cwd, real("~")
        while not os.path.isdir(top + "/.git"):
            top = os.path.dirname(top)
            if inside(home, top):
                return
        for name in ("hooks", "config"):
            self.ground.add("ro", "%s/.git/%s" % (top, name))
        self.ground.add("ro", top)

    def _own_folder(self) -> None:
        """In the place of the attempt's folder is one where its files can be read and new ones written, which are moved there at the end."""
        ground = self.ground
        ground.add("private", self.folder, self.scratch + "/here")
        for name in os.listdir(self.folder):
            if _of_the_kind(name):
                ground.add("show", "%s/%s" % (self.folder, name))
        for name in WRITTEN:
            if os.path.isdir("%s/%s" % (self.folder, name)):
                ground.add("rw", "%s/%s" % (self.folder, name))

    def _system(self) -> None:
        ground = self.ground
        for path in filter(os.path.isdir, PRIVATE_TMP):
            ground.add("private", real(path), self.scratch + "/tmp")
        for path in HIDDEN:
            ground.add("hide", real(path))
        for path in RUN_SHOWN:
            ground.add("show", path)
        temporary = real(os.environ.get("TMPDIR") or "/tmp")
        if not inside(real("~"), temporary):
            ground.add("hide", temporary)

    def _homes(self) -> None:
        """The home folder is a private one, with the user's tools in it."""
        ground, homes = self.ground, [real("~")]
        if os.getuid() == 0:
            homes += [path for path in HIDDEN_FROM_ROOT if path not in homes]
        for home in homes:
            if home == "/" or not os.path.isdir(home):
                continue
            for name in HOME_HIDDEN:
                ground.add("hide", real("%s/%s" % (home, name)))
            if home in HIDDEN_FROM_ROOT and home != homes[0]:
                ground.add("hide", home)
                continue
            private = ("private", self.scratch + "/home")
            ground.add(private[0], home, private[1])
            if ground.parts[home] != private:
                continue  # it is the folder that is worked in, or the node's own
            for name in HOME_SHOWN:
                path = "%s/%s" % (home, name)
                if os.path.islink(path):
                    ground.add("link", path, os.readlink(path))
                else:
                    ground.add("show", path)

    def _programs(self) -> None:
        for folder in self.env.get("PATH", "").split(":"):
            if os.path.isabs(folder):
                self._show_folder(folder)
        for name in INTERPRETERS:
            self._show_program(name)

    def _show_folder(self, folder: str) -> None:
        """A folder of programs, and what they need from beside it, where it is and where it really is."""
        for place in {os.path.normpath(folder), real(folder)}:
            ground, around = self.ground, os.path.dirname(place)
            ground.add("show", place)
            if os.path.basename(place) in ("bin", "sbin", "shims", "condabin"):
                for name in BESIDE_PROGRAMS:
                    ground.add("show", "%s/%s" % (around, name))

    def _show_program(self, name: str) -> None:
        """A program, wherever links lead to it, and who interprets it."""
        for _ in range(3):  # a script's interpreter may be a script
            try:
                place = found_program(name, self.env.get("PATH", os.defpath))
            except OSError:
                return
            if not os.path.isabs(place) or self.ground.part_of(place) == "rw":
                return  # it is seen, and an agent that can write it must not say what else is
            for path in _way_of_links(place):
                if self.ground.part_of(path) == "rw":
                    return
                top, found, _ = path.partition("/node_modules/")
                self._show_folder(top + "/node_modules" if found else os.path.dirname(path))
            name = _interpreter(place)
            if not name:
                return

    def leave(self) -> Iterable[tuple[str, list[str], dict[str, str]]]:
        """What is to be run, outside, when all is over: (what for, command line, environment). What the kind wrote for itself is kept."""
        here = self.scratch + "/here"
        for name in filter(_of_the_kind, os.listdir(here)):
            if not os.path.lexists("%s/%s" % (self.folder, name)):
                os.rename("%s/%s" % (here, name), "%s/%s" % (self.folder, name))
        path = {"PATH": self.path}
        if self.git is not None:
            argv = self.git.taking_over()
            if argv:
                yield "take over its commits", argv, dict(path, GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_SYSTEM="/dev/null", LC_ALL="C")
        if not removed(self.scratch, [ENTRIES_AT_ONCE]):
            yield "remove its temporary files", ["/bin/sh", "-c", REMOVE, "sh", self.scratch], path


def _of_the_kind(name: str) -> bool:
    """Whether an agent kind, and not the worker, put it into the attempt's folder."""
    return name.partition(".")[0] not in ("", *OWN_FILES)


def _way_of_links(path: str) -> list[str]:
    """A file, each link on the way from it, and where it really is."""
    way = [path]
    while os.path.islink(way[-1]) and len(way) < LINKS_MAX:
        way.append(os.path.normpath(os.path.join(os.path.dirname(way[-1]), os.readlink(way[-1]))))
    return [*way, real(path)]


def _interpreter(path: str) -> str:
    """What the first line of a script names, or nothing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        head = os.read(fd, 256)
    except OSError:
        return ""
    finally:
        os.close(fd)
    words = head[2:].split(b"\n", 1)[0].split() if head[:2] == b"#!" else []
    if words and words[0].endswith(b"/env"):
        words = [word for word in words[1:] if not word.startswith(b"-") and b"=" not in word]
    return os.fsdecode(words[0]) if words else ""
