"""PORT: where attempts work on one machine, and how what they did comes out again.

An attempt on a git repository gets a worktree and a branch of its own; on any other folder, a private copy. What it did is collected as a commit (or, from a
copy, as a patch), and merged into the plan's branch once it is verified. The user's branches, index and files are touched by `bring` alone, and nothing is
removed that is not in the plan's branch or under a salvage ref; `prune` alone forgets such refs. Every operation may be asked for again after it failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from orchestra.ids import AttemptId, PlanId


class RepoFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a folder is. Numbers are -1 where the repository does not tell."""

    folder: str
    """Absolute, without links."""
    is_git: bool
    git_version: str = ""
    toplevel: str = ""
    """Top of the checkout; empty for a bare repository."""
    common: str = ""
    """The git directory that all its worktrees share."""
    prefix: str = ""
    """The folder as seen from the top."""
    bare: bool = False
    head: str = ""
    """Empty: there is no commit yet."""
    branch: str = ""
    """Full name; empty: detached."""
    object_format: str = "sha1"
    files: int = -1
    dirty_files: int = -1
    """Changed, staged or untracked, ignored ones not counted. They are not in what attempts start from."""
    size_bytes: int = 0
    submodules: tuple[str, ...] = ()
    """Not filled in workspaces."""
    hooks: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    """Settings that name a program. None of them is run by us; the agent's own git does as it is told."""
    shallow: bool = False
    partial: bool = False
    worktrees: int = 0
    locks: tuple[str, ...] = ()
    """Lock files in the git directory: a git is at work, or was killed."""


class Repair(msgspec.Struct, frozen=True):
    """An earlier attempt whose work is to be gone on with."""

    attempt: AttemptId
    base: str
    """The commit that it began from."""
    kept: str | None = None
    """Ref (of a copy: folder) under which its work is kept, empty if it did nothing; None while it may still have its place."""


class WorkRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A workspace that is wanted."""

    repo: str
    """The task's folder. Below a repository's top, the workspace begins there too."""
    attempt: AttemptId
    base: str = ""
    """Full name of the commit to start from: the merge of the verified work it needs. Empty: the plan's branch, or HEAD while there is none."""
    here: bool = False
    """The folder is one of the control machine, also where the workspace is to be on another."""
    repairs: Repair | None = None
    """Whose work it is to hold, as changes since that one's base, which is then its own base too. Where that is not to be had it is like any other."""


class Workspace(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A place made for one attempt. To be recorded before the attempt starts, with its base."""

    attempt: AttemptId
    kind: Literal["git", "copy"]
    repo: str
    path: str
    """Top of the worktree or copy."""
    cwd: str
    """Where the agent starts."""
    base: str = ""
    branch: str = ""
    """Full name."""
    fresh: bool = True
    """False: it was there before, from an earlier asking."""
    repairs: bool = False
    """It began as the attempt that it repairs left its own."""
    here: bool = False
    """The repository is on the control machine, the workspace on another."""


class WorkFailure(msgspec.Struct, frozen=True):
    """A workspace that could not be made. `code`: refused, not-found, bad-input, locked, disk, tampered, stale or failed."""

    attempt: AttemptId
    code: str
    message: str
    hint: str = ""


class Collected(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an attempt did since its base. Paths are relative to the top; bytes that are no UTF-8 appear as `\\xNN`."""

    head: str = ""
    """The commit that holds all of it; the base if nothing changed, empty for a copy."""
    base: str = ""
    tree: str = ""
    commits: int = 0
    created: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    lines_added: int = 0
    lines_removed: int = 0
    patch: bytes = b""
    patch_cut: bool = False
    """The patch was longer than the limit; the rest is in the commit."""
    skipped: tuple[str, ...] = ()
    """Left out: too large, or a repository of its own."""
    notes: tuple[str, ...] = ()
    """What a person should know, one sentence each."""
    salvaged: str = ""
    """Ref that keeps history of the agent's that does not descend from the base."""
    brought: str = ""
    """Ref of the control machine under which it is there, if the workspace is on another."""

    @property
    def files(self) -> frozenset[str]:
        """Every path that differs."""
        return frozenset((*self.created, *self.changed, *self.deleted))


class Touched(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt has changed since its base so far, committed or not. Bytes of paths that are no UTF-8 appear as `\\xNN`."""

    attempt: AttemptId
    paths: tuple[str, ...]
    """Relative to the top, in order; those that are ignored are not among them."""
    more: bool
    """There are others, past the limit."""
    prefix: str
    """The task's folder as seen from the top."""


class Side(msgspec.Struct, frozen=True):
    """One version of a file, its first part."""

    mode: str
    text: str
    cut: bool
    binary: bool


class Conflict(msgspec.Struct, frozen=True, kw_only=True):
    """One file on which the plan's branch (ours) and the attempt (theirs) disagree. None: there is no such file on that side."""

    path: str
    base: Side | None
    ours: Side | None
    theirs: Side | None
    merged: Side | None
    """With markers, where it has lines."""


class MergeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A verified commit that is to come into its plan's branch."""

    repo: str
    attempt: AttemptId
    head: str
    expected: str | None = None
    """Where the plan's branch must be: a commit, empty for none, None for anywhere."""
    message: str = ""
    hold: bool = False
    """Where the result is not what was verified, the branch stays where it is for now."""
    proven: str = ""
    """The commit that such a merge was held at, verified now: the branch goes there and nowhere else."""
    here: bool = False
    """The repository is one of the control machine."""


class CheckoutRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A commit whose checks are to be run."""

    repo: str
    attempt: AttemptId
    """Whose work was merged into it."""
    commit: str
    here: bool = False
    """The repository, and the commit, are on the control machine."""


class MergeResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of it. Only `merged` has changed anything; `held`: it would be merged at `head`, once that is verified."""

    result: Literal["merged", "held", "conflict", "stale", "nothing"]
    branch: str
    old: str
    """Where the plan's branch was; empty: it was not there."""
    head: str
    """Where it is now."""
    trivial: bool = True
    """The new commit's files are exactly what was verified. Otherwise nobody has verified the two together yet."""
    conflicts: tuple[Conflict, ...] = ()
    conflict_files: int = 0
    """All of them; `conflicts` may hold fewer."""
    messages: tuple[str, ...] = ()


class BringRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A plan's branch that is to come into a branch of the user's."""

    repo: str
    plan: PlanId
    branch: str
    """Its short name. It has to be there."""
    here: bool = False
    """The repository is one of the control machine."""


class Brought(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of it. Only `merged` has changed anything."""

    result: Literal["merged", "nothing", "conflict"]
    repo: str
    """Top of the checkout, or git directory."""
    branch: str
    old: str = ""
    head: str = ""
    forward: bool = False
    """The branch only went forward to the plan's: nothing was merged with it that was not verified together."""
    files: tuple[str, ...] = ()
    """Those in conflict."""
    checkout: str = ""
    """Folder in which the branch is checked out, whose files followed it."""


class LetGo(msgspec.Struct, frozen=True):
    """What became of a workspace that is no longer wanted."""

    removed: bool
    kept: str
    """Salvage ref (or folder, for a copy) that holds what was not merged; empty: there was nothing."""


class Tidied(msgspec.Struct, frozen=True, kw_only=True):
    """One workspace that tidying looked at. `plan` and `task` are as in its path."""

    plan: str
    task: str
    bytes: int
    age_ms: int
    action: Literal["keep", "remove"]
    why: str
    kept: str = ""


class TidyReport(msgspec.Struct, frozen=True):
    """What tidying did, or would do."""

    entries: tuple[Tidied, ...]
    total_bytes: int
    freed_bytes: int


class TidyRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What may go: everything older than `age_ms`, and the oldest while all together take more than `quota_bytes`."""

    quota_bytes: int
    age_ms: int
    live: tuple[AttemptId, ...] = ()
    """Attempts that are not over; theirs stay."""
    fresh_ms: int = 0
    """What was made within this time stays: somebody may have asked for it who is not among `live` yet."""
    dry_run: bool = True


class PruneRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which refs that keep unmerged work may go: those of our plans in these repositories that are older."""

    repos: tuple[tuple[str, bool], ...]
    """Folder, and whether it is one of the control machine."""
    age_ms: int
    live: tuple[PlanId, ...] = ()
    """Plans that are not over; theirs stay."""
    dry_run: bool = True


class KeptRef(msgspec.Struct, frozen=True, kw_only=True):
    """A ref that pruning looked at. With its commit it can be made again until git itself forgets that."""

    repo: str
    """Git directory."""
    ref: str
    commit: str
    age_ms: int
    action: Literal["keep", "remove"]
    why: str
    here: bool = False
    """The repository is on the control machine, the node is another."""


class Workspaces(Protocol):
    """The workspaces of one orchestra on one machine.

    Each may raise `Refused` (or `NotFound`, `BadInput`) for what a person has to mend, `NodeFailed` for what went wrong there, and `NodeUnreachable`.
    """

    async def inspect(self, folder: str) -> RepoFacts:
        """Tells what a folder is; changes nothing."""
        ...

    async def prepare(self, requests: Sequence[WorkRequest]) -> tuple[Workspace | WorkFailure, ...]:
        """Makes workspaces, many at once; each has its own outcome, in the order of the requests. One that is there already is returned again.

        Raises:
            NodeUnreachable: Nothing is known of any of them; asking again is safe.
        """
        ...

    def known(self, attempt: AttemptId) -> Workspace | None:
        """Returns a workspace that was made here and not let go of, as it was made; None: `prepare` tells."""
        ...

    async def collect(self, workspace: Workspace, message: str) -> Collected:
        """Commits what the attempt left (author "orchestra") and tells what it did. Again after nothing changed: the same.

        Raises:
            Refused: Its `.git` was replaced; nothing was used.
            NotFound: Its folder is gone; what was committed is on its branch.
        """
        ...

    async def touched(self, requests: Sequence[WorkRequest]) -> tuple[Touched | WorkFailure, ...]:
        """Looks at what attempts have changed so far, while they run; nothing is written. Each has its own outcome, in the order of the requests."""
        ...

    async def merge(self, request: MergeRequest) -> MergeResult:
        """Brings a commit into its plan's branch, atomically."""
        ...

    async def checkout(self, request: CheckoutRequest) -> Workspace:
        """Makes a checkout of a merge that was held, in the task's subfolder of it. One for the same attempt that is there is replaced."""
        ...

    async def drop_checkout(self, attempt: AttemptId) -> None:
        """Removes that checkout with all that is in it; it is no place to work in."""
        ...

    async def tip(self, repo: str, plan: PlanId) -> str:
        """Returns where a plan's branch is, empty: it is not there."""
        ...

    async def bring(self, request: BringRequest) -> Brought:
        """Merges a plan's branch into a branch of the user's, if that goes without a conflict; a clean checkout of it follows.

        Raises:
            Refused: The branch is checked out with changes in it, or is one of ours.
            NotFound: There is no such branch.
        """
        ...

    async def release(self, attempt: AttemptId) -> LetGo:
        """Removes a workspace whose work is collected. Its branch goes too when it is merged.

        Raises:
            Refused: It holds work that is not collected, or a process works in it.
        """
        ...

    async def discard(self, attempt: AttemptId) -> LetGo:
        """Removes a workspace and its branch; what is not merged is put under a salvage ref first."""
        ...

    async def salvage(self, attempt: AttemptId) -> LetGo:
        """Puts everything a workspace holds under a salvage ref and leaves it as it is."""
        ...

    async def tidy(self, request: TidyRequest) -> TidyReport:
        """Lets go of what is old or over the quota; unmerged work is kept."""
        ...

    async def prune(self, request: PruneRequest) -> tuple[KeptRef, ...]:
        """Forgets salvage and result refs that are old. The only operation by which work can be lost."""
        ...
