"""Workspaces on a machine, through its transport: worktrees of git repositories, private copies of other folders."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final, TypeVar

import msgspec

from orchestra.errors import BadInput, NodeUnreachable, OrchestraError
from orchestra.ids import AttemptId, PlanId
from orchestra.nodes.transport import Transport
from orchestra.workspace import (
    BringRequest,
    Brought,
    CheckoutRequest,
    Collected,
    KeptRef,
    LetGo,
    MergeRequest,
    MergeResult,
    PruneRequest,
    Repair,
    RepoFacts,
    TidyReport,
    TidyRequest,
    Touched,
    WorkFailure,
    WorkRequest,
    Workspace,
)
from orchestra.workspaces.calling import MachineOptions, call
from orchestra.workspaces.names import attempt_parts, check_prefix, plan_part

Answer = TypeVar("Answer")

MIB: Final = 1 << 20
GIB: Final = 1 << 30


class WorkspaceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of workspaces."""

    machine: MachineOptions
    owner: str
    """Stands for this orchestra in repositories that several use, as `Root.key` does."""
    branches: str = "orchestra"
    """What all branches begin with."""
    parallel: int = 4
    """Checkouts at the same time. Writing files is the kernel's work: more than its cores gain nothing."""
    calls_max: int = 4
    """Requests at the same time; SSH servers allow ten channels a connection."""
    disk_free_bytes_min: int = GIB
    """No workspace is made when less is free."""
    file_bytes_max: int = 100 * MIB
    """Longer new or changed files are left out of the commit and told; hosting services refuse them too."""
    patch_bytes_max: int = 4 * MIB
    """The patch is for people and reports; all of it is in the commit."""
    conflict_files_max: int = 20
    conflict_bytes_max: int = 16 << 10
    """Of each side of a file in conflict: what fits in a prompt."""
    look_ms: int = 10_000
    """For a look at what one attempt has changed so far; a worktree of 100,000 files takes less than one second, on a slow disk some."""
    look_all_ms: int = 60_000
    """For all looks of one time together."""
    look_paths_max: int = 200
    """Paths named of an attempt: one that changes more is seldom in the way of one particular other."""
    copy_files_max: int = 50_000
    copy_bytes_max: int = 2 * GIB


class _Record(msgspec.Struct):
    kind: str
    repo: str
    path: str
    base: str
    branch: str
    prefix: str
    fresh: bool
    repairs: bool = False


class _Failed(msgspec.Struct):
    failed: str
    message: str
    hint: str


class _Seen(msgspec.Struct):
    paths: tuple[str, ...]
    more: bool
    prefix: str


class _Tip(msgspec.Struct):
    head: str


class _LetGo(msgspec.Struct):
    kept: str
    removed: bool = False


class MachineWorkspaces:
    """Implements `orchestra.workspace.Workspaces`. Made without I/O; what it remembers only saves questions."""

    def __init__(self, transport: Transport, options: WorkspaceOptions) -> None:
        self._transport = transport
        self._options = options
        self._prefix = check_prefix(options.branches)
        self._calls = asyncio.Semaphore(options.calls_max)
        self._known: dict[AttemptId, Workspace] = {}

    async def inspect(self, folder: str) -> RepoFacts:
        return await self._call("inspect", {"folder": folder, "private": self._options.machine.folder}, RepoFacts)

    async def prepare(self, requests: Sequence[WorkRequest]) -> tuple[Workspace | WorkFailure, ...]:
        order = sorted(range(len(requests)), key=lambda number: requests[number].repo)
        made: dict[int, Workspace | WorkFailure] = {}
        for repo, group in groupby(order, key=lambda number: requests[number].repo):
            numbers = list(group)
            outcomes = await self._prepare_in(repo, [requests[number] for number in numbers])
            made.update(zip(numbers, outcomes, strict=True))
        self._known.update((place.attempt, place) for place in made.values() if isinstance(place, Workspace))
        return tuple(made[number] for number in range(len(requests)))

    def known(self, attempt: AttemptId) -> Workspace | None:
        return self._known.get(attempt)

    async def _prepare_in(self, repo: str, requests: Sequence[WorkRequest]) -> list[Workspace | WorkFailure]:
        options = self._options
        parts = [attempt_parts(request.attempt) for request in requests]
        attempts = [
            {"plan": plan, "task": task, "base": request.base, "repairs": _repaired(request.repairs)}
            for (plan, task), request in zip(parts, requests, strict=True)
        ]
        arguments = {
            "repo": repo,
            "owner": options.owner,
            "prefix": self._prefix,
            "attempts": attempts,
            "parallel": options.parallel,
            "disk_free_bytes_min": options.disk_free_bytes_min,
            "file_bytes_max": options.file_bytes_max,
            "copy_files_max": options.copy_files_max,
            "copy_bytes_max": options.copy_bytes_max,
        }
        try:
            answer = await self._call("prepare", arguments, dict[str, list[Any]])
        except NodeUnreachable:
            raise
        except OrchestraError as error:
            code = {"node_failed": "failed"}.get(error.code, error.code.replace("_", "-"))
            return [WorkFailure(request.attempt, code, error.message, error.hint) for request in requests]
        return [_outcome(request, found) for request, found in zip(requests, answer["results"], strict=True)]

    async def collect(self, workspace: Workspace, message: str) -> Collected:
        options = self._options
        arguments = {**self._place(workspace.attempt), "message": message, "file_bytes_max": options.file_bytes_max}
        found = await self._call("collect", {**arguments, "patch_bytes_max": options.patch_bytes_max}, Collected)
        if found.base != workspace.base:
            raise BadInput(f"the workspace of {workspace.attempt} began at {found.base or 'no commit'}, not {workspace.base}", field="base")
        return found

    async def touched(self, requests: Sequence[WorkRequest]) -> tuple[Touched | WorkFailure, ...]:
        options = self._options
        attempts = [self._place(request.attempt) for request in requests]
        limits = {"look_ms": options.look_ms, "paths_max": options.look_paths_max}
        machine = msgspec.structs.replace(options.machine, timeout_ms=options.look_all_ms)
        async with self._calls:
            answer = await call(self._transport, machine, "touched", {"attempts": attempts, **limits}, dict[str, list[Any]])
        return tuple(_seen(request, found) for request, found in zip(requests, answer["results"], strict=True))

    async def merge(self, request: MergeRequest) -> MergeResult:
        plan, task = attempt_parts(request.attempt)
        arguments = {
            "repo": request.repo,
            "owner": self._options.owner,
            "prefix": self._prefix,
            "plan": plan,
            "task": task,
            "head": request.head,
            "expected": request.expected,
            "message": request.message or f"Merge {request.attempt}",
            "hold": request.hold,
            "proven": request.proven,
            "conflict_files_max": self._options.conflict_files_max,
            "conflict_bytes_max": self._options.conflict_bytes_max,
        }
        return await self._call("merge", arguments, MergeResult)

    async def checkout(self, request: CheckoutRequest) -> Workspace:
        arguments = {
            **self._place(request.attempt),
            "repo": request.repo,
            "owner": self._options.owner,
            "prefix": self._prefix,
            "commit": request.commit,
            "disk_free_bytes_min": self._options.disk_free_bytes_min,
        }
        return _workspace(request.attempt, await self._call("checkout", arguments, _Record))

    async def drop_checkout(self, attempt: AttemptId) -> None:
        await self._let_go("drop_checkout", attempt)

    async def tip(self, repo: str, plan: PlanId) -> str:
        arguments = {"repo": repo, "owner": self._options.owner, "prefix": self._prefix, "plan": plan_part(plan)}
        return (await self._call("tip", arguments, _Tip)).head

    async def bring(self, request: BringRequest) -> Brought:
        arguments = {"repo": request.repo, "owner": self._options.owner, "prefix": self._prefix, "plan": plan_part(request.plan)}
        return await self._call("bring", {**arguments, "branch": request.branch}, Brought)

    async def release(self, attempt: AttemptId) -> LetGo:
        return await self._let_go("release", attempt)

    async def discard(self, attempt: AttemptId) -> LetGo:
        return await self._let_go("discard", attempt)

    async def salvage(self, attempt: AttemptId) -> LetGo:
        return await self._let_go("salvage", attempt)

    async def tidy(self, request: TidyRequest) -> TidyReport:
        live = [attempt_parts(attempt) for attempt in request.live]
        arguments = {"quota_bytes": request.quota_bytes, "age_ms": request.age_ms, "live": live, "dry_run": request.dry_run}
        return await self._call("gc", {**arguments, "fresh_ms": request.fresh_ms}, TidyReport)

    async def prune(self, request: PruneRequest) -> tuple[KeptRef, ...]:
        arguments = {
            "repos": [folder for folder, _ in request.repos],
            "age_ms": request.age_ms,
            "live": [plan_part(plan) for plan in request.live],
            "owner": self._options.owner,
            "prefix": self._prefix,
            "dry_run": request.dry_run,
        }
        return await self._call("prune", arguments, tuple[KeptRef, ...])

    async def _let_go(self, operation: str, attempt: AttemptId) -> LetGo:
        self._known.pop(attempt, None)
        found = await self._call(operation, self._place(attempt), _LetGo)
        return LetGo(found.removed, found.kept)

    def _place(self, attempt: AttemptId) -> dict[str, Any]:
        plan, task = attempt_parts(attempt)
        return {"plan": plan, "task": task}

    async def _call(self, operation: str, arguments: dict[str, Any], kind: type[Answer]) -> Answer:
        async with self._calls:
            return await call(self._transport, self._options.machine, operation, arguments, kind)


def _repaired(repairs: Repair | None) -> dict[str, Any] | None:
    return None if repairs is None else {"task": attempt_parts(repairs.attempt)[1], "base": repairs.base, "kept": repairs.kept}


def _failure(request: WorkRequest, found: dict[str, Any]) -> WorkFailure:
    failure = msgspec.convert(found, _Failed)
    return WorkFailure(request.attempt, failure.failed, failure.message, failure.hint)


def _seen(request: WorkRequest, found: dict[str, Any]) -> Touched | WorkFailure:
    if "failed" in found:
        return _failure(request, found)
    seen = msgspec.convert(found, _Seen)
    return Touched(attempt=request.attempt, paths=seen.paths, more=seen.more, prefix=seen.prefix)


def _outcome(request: WorkRequest, found: dict[str, Any]) -> Workspace | WorkFailure:
    if "failed" in found:
        return _failure(request, found)
    return _workspace(request.attempt, msgspec.convert(found, _Record))


def _workspace(attempt: AttemptId, record: _Record) -> Workspace:
    cwd = f"{record.path}/{record.prefix}" if record.prefix else record.path
    workspace = {
        "kind": record.kind,
        "repo": record.repo,
        "path": record.path,
        "base": record.base,
        "branch": record.branch,
        "fresh": record.fresh,
        "repairs": record.repairs,
    }
    return msgspec.convert({"attempt": tuple(attempt), "cwd": cwd, **workspace}, Workspace)
