"""Workspaces on a node for repositories of the control machine.

The node keeps a copy of each repository and gets the commits that attempts start from; what they did comes back under a ref of the user's repository and is
merged here. Repositories that lie on the node itself are worked on there as on any machine.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from orchestra.errors import NodeFailed, NodeUnreachable, NotFound, OrchestraError, Refused
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
from orchestra.workspaces.calling import call
from orchestra.workspaces.machine import MachineWorkspaces, WorkspaceOptions
from orchestra.workspaces.names import attempt_parts
from orchestra.workspaces.transfer import End, fetch_back, mirror_folder, result_ref, send_commits, send_repo

SHA_SHOWN: Final = 12
FOLDER_MS: Final = 60_000
REMEDY: Final = (
    "make it a repository with a commit, or set `isolation: shared` (it then has a folder of its own there), "
    "or name the absolute folder of a repository that is on both machines, or run the task on this one"
)


class Site(msgspec.Struct, frozen=True):
    """A machine and how workspaces are made on it."""

    transport: Transport
    options: WorkspaceOptions

    def spaces(self) -> MachineWorkspaces:
        return MachineWorkspaces(self.transport, self.options)

    def end(self, repo: str) -> End:
        return End(self.transport, self.options.machine, repo)


class _Origin(msgspec.Struct, frozen=True):
    """A task's folder on the control machine."""

    repo: str
    """Top of its repository."""
    prefix: str
    """The folder as seen from the repository's top."""
    mirror: str
    """Where the node keeps its copy of the repository."""


class _Tip(msgspec.Struct):
    start: str


class _Refs(msgspec.Struct):
    refs: dict[str, str]


class RemoteWorkspaces:
    """Implements `orchestra.workspace.Workspaces` for a node that is not the control machine. Made without I/O.

    What it remembers only saves questions: after a restart, all of it is found out again.
    """

    def __init__(self, home: Site, node: Site) -> None:
        self._home, self._node = home, node
        self._at_home, self._there = home.spaces(), node.spaces()
        self._origins: dict[str, _Origin] = {}
        self._sent: set[tuple[str, str]] = set()
        """Mirror and commit."""
        self._sending: dict[str, asyncio.Lock] = {}
        self._known: dict[AttemptId, Workspace] = {}
        """Those that were made and not let go of."""

    async def inspect(self, folder: str) -> RepoFacts:
        """Tells what a folder of the control machine is."""
        return await self._at_home.inspect(folder)

    async def tip(self, repo: str, plan: PlanId) -> str:
        """Returns where a plan's branch is on the control machine."""
        return await self._at_home.tip(repo, plan)

    async def merge(self, request: MergeRequest) -> MergeResult:
        if not request.here:
            return await self._there.merge(request)
        origin = await self._origin(request.repo)
        return await self._at_home.merge(msgspec.structs.replace(request, repo=origin.repo))

    async def checkout(self, request: CheckoutRequest) -> Workspace:
        if not request.here:
            return await self._there.checkout(request)
        origin = await self._origin(request.repo)
        await self._send(origin, attempt_parts(request.attempt)[0], request.commit)
        found = await self._there.checkout(msgspec.structs.replace(request, repo=origin.mirror))
        cwd = f"{found.path}/{origin.prefix}" if origin.prefix else found.path
        if origin.prefix and (trouble := await self._make_folder(cwd)):
            raise NodeFailed(trouble)
        return msgspec.structs.replace(found, repo=request.repo, cwd=cwd, here=True)

    async def drop_checkout(self, attempt: AttemptId) -> None:
        await self._there.drop_checkout(attempt)

    async def bring(self, request: BringRequest) -> Brought:
        return await (self._at_home if request.here else self._there).bring(request)

    async def release(self, attempt: AttemptId) -> LetGo:
        return self._forget(attempt, await self._there.release(attempt))

    async def discard(self, attempt: AttemptId) -> LetGo:
        """Removes a workspace and its branch. What came back from it stays under its ref on the control machine."""
        return self._forget(attempt, await self._there.discard(attempt))

    async def salvage(self, attempt: AttemptId) -> LetGo:
        return await self._there.salvage(attempt)

    async def tidy(self, request: TidyRequest) -> TidyReport:
        return await self._there.tidy(request)

    async def prune(self, request: PruneRequest) -> tuple[KeptRef, ...]:
        """Looks at the refs on the node, and at what came back from it to the control machine."""
        here, there = [folder for folder, here in request.repos if here], [repo for repo in request.repos if not repo[1]]
        for folder in here:
            try:
                there.append(((await self._origin(folder)).mirror, False))
            except (NotFound, Refused):
                continue  # no repository any more: nothing of ours is in it
        found = await self._there.prune(msgspec.structs.replace(request, repos=tuple(there)))
        at_home = await self._at_home.prune(msgspec.structs.replace(request, repos=tuple((folder, True) for folder in here)))
        return (*found, *(msgspec.structs.replace(each, here=True) for each in at_home))

    # --- making ------------------------------------------------------------------------------------------------------

    async def prepare(self, requests: Sequence[WorkRequest]) -> tuple[Workspace | WorkFailure, ...]:
        outcomes: dict[int, Workspace | WorkFailure] = {}
        asked: dict[int, WorkRequest] = {}
        starts: dict[tuple[str, str], str] = {}
        for number, request in enumerate(requests):
            try:
                asked[number] = await self._bring(request, starts) if request.here else request
            except NodeUnreachable:
                raise
            except OrchestraError as error:
                outcomes[number] = _failure(request.attempt, error)
        made = await self._there.prepare(list(asked.values()))
        for number, found in zip(asked, made, strict=True):
            request = requests[number]
            try:
                outcomes[number] = await self._settle(request, asked[number], found) if request.here else found
            except NodeUnreachable:
                raise
            except OrchestraError as error:
                outcomes[number] = _failure(request.attempt, error)
        self._known.update((place.attempt, place) for place in outcomes.values() if isinstance(place, Workspace))
        return tuple(outcomes[number] for number in range(len(requests)))

    def known(self, attempt: AttemptId) -> Workspace | None:
        return self._known.get(attempt)

    async def _bring(self, request: WorkRequest, starts: dict[tuple[str, str], str]) -> WorkRequest:
        """Sees to it that the node has what an attempt starts from, and returns what to ask of it. `starts`: what was looked up for this call before."""
        origin = await self._origin(request.repo)
        plan = attempt_parts(request.attempt)[0]
        known = self._known.get(request.attempt)
        base = request.base or ("" if known is None else known.base)
        if not base:
            key = (origin.repo, plan)
            base = starts[key] = starts.get(key) or await self._start(origin, plan)
        if known is None:
            await self._send(origin, plan, base)
        if known is None and request.repairs is not None:
            await self._send_work(origin, request.repairs)
        return WorkRequest(repo=origin.mirror, attempt=request.attempt, base=base, repairs=request.repairs)

    async def _settle(self, request: WorkRequest, asked: WorkRequest, found: Workspace | WorkFailure) -> Workspace | WorkFailure:
        """Turns the node's answer into ours; asks again where the node has less, or more, than was known here."""
        origin = self._origins[request.repo]
        if isinstance(found, WorkFailure) and found.code == "not-found":
            found = await self._send_anew(origin, asked)
        if isinstance(found, WorkFailure) and found.code == "refused" and not request.base:
            found = await self._earlier(asked, found)
        if isinstance(found, WorkFailure):
            return found
        if found.kind == "copy":
            await self._there.discard(found.attempt)
            raise NodeFailed(f"{origin.mirror} on that machine is no repository any more", hint="remove it there; it is made again")
        cwd = f"{found.path}/{origin.prefix}" if origin.prefix else found.path
        if origin.prefix and request.attempt not in self._known:
            trouble = await self._make_folder(cwd)  # what attempts start from need not have it
            if trouble and found.fresh:
                return WorkFailure(request.attempt, "failed", trouble)
        return msgspec.structs.replace(found, repo=request.repo, cwd=cwd, here=True)

    async def _send_anew(self, origin: _Origin, asked: WorkRequest) -> Workspace | WorkFailure:
        """The node's copy is gone, or was made anew: everything is sent again, once."""
        self._sent = {each for each in self._sent if each[0] != origin.mirror}
        await self._send(origin, attempt_parts(asked.attempt)[0], asked.base)
        return (await self._there.prepare([asked]))[0]

    async def _earlier(self, asked: WorkRequest, failure: WorkFailure) -> Workspace | WorkFailure:
        """Returns the workspace that is there with another base, as the plan's branch went on since; the failure if that was not the reason."""
        found = (await self._there.prepare([msgspec.structs.replace(asked, base="")]))[0]
        if isinstance(found, WorkFailure):
            return failure
        if found.fresh:
            await self._there.discard(found.attempt)
            return failure
        return found

    async def _make_folder(self, path: str) -> str:
        """Makes a folder on the node; returns why it could not, or nothing."""
        try:
            done = await self._node.transport.run(["mkdir", "-p", "--", path], timeout_ms=FOLDER_MS)
        except TimeoutError:
            return f"{path} was not made within {FOLDER_MS} ms"
        return f"{path} could not be made: {done.err.decode(errors='replace').strip()[-300:]}" if done.code else ""

    # --- between the machines ----------------------------------------------------------------------------------------

    async def _origin(self, folder: str) -> _Origin:
        """Returns what a folder of the control machine is.

        Raises:
            Refused: It is no repository, or one without a commit.
        """
        if folder not in self._origins:
            facts = await self._at_home.inspect(folder)
            if not facts.is_git:
                raise Refused(f"{facts.folder} is no git repository, and only those are brought to another machine", hint=REMEDY)
            if not facts.head:
                raise Refused(f"the repository {facts.folder} has no commit that could be brought to another machine", hint=REMEDY)
            name = hashlib.sha256(facts.common.encode()).hexdigest()[:16]
            self._origins[folder] = _Origin(facts.toplevel or facts.common, facts.prefix, mirror_folder(self._node.options.machine, name))
        return self._origins[folder]

    async def _start(self, origin: _Origin, plan: str) -> str:
        """Returns the commit that attempts of a plan start from: its branch, or HEAD while there is none."""
        home = self._home
        asked = {"repo": origin.repo, "owner": home.options.owner, "prefix": home.options.branches, "plan": plan}
        tip = await call(home.transport, home.options.machine, "tip", asked, _Tip)
        if tip.start:
            return tip.start
        found = await call(home.transport, home.options.machine, "send_facts", {"repo": origin.repo, "refs": ["HEAD"]}, _Refs)
        if not found.refs["HEAD"]:
            raise NotFound(f"{origin.repo} has no commit any more", hint=REMEDY)
        return found.refs["HEAD"]

    async def _send(self, origin: _Origin, plan: str, sha: str) -> None:
        """Brings a commit to the node's copy, once. A transfer that broke off is tried again once: if the link is cut, that is then known."""
        async with self._sending.setdefault(origin.mirror, asyncio.Lock()):
            if (origin.mirror, sha) in self._sent:
                return
            source, target, refs = self._home.end(origin.repo), self._node.end(origin.mirror), {f"refs/heads/starts/{plan}": sha}
            try:
                await send_repo(source, target, refs)
            except NodeUnreachable:
                raise
            except NodeFailed:
                await send_repo(source, target, refs)
            self._sent.add((origin.mirror, sha))

    async def _send_work(self, origin: _Origin, repairs: Repair) -> None:
        """Brings the work of an earlier attempt to the node, as far as it is on the control machine: it may have been done on another one."""
        ref = result_ref(repairs.attempt)
        refs = [ref, *([repairs.kept] if repairs.kept and repairs.kept.startswith("refs/") else [])]
        try:
            found = await call(self._home.transport, self._home.options.machine, "send_facts", {"repo": origin.repo, "refs": refs}, _Refs)
            sha = next((found.refs[name] for name in reversed(refs) if found.refs.get(name)), "")
            if sha:
                await send_commits(self._home.end(origin.repo), self._node.end(origin.mirror), {ref: sha}, force=True)
        except NodeUnreachable:
            raise
        except OrchestraError:
            return  # then it begins like any other

    async def collect(self, workspace: Workspace, message: str) -> Collected:
        found = await self._there.collect(workspace, message)
        if workspace.here and found.head != workspace.base:
            brought = await self._bring_back(await self._origin(workspace.repo), workspace.attempt, found.head)
            return msgspec.structs.replace(found, brought=brought)
        return found

    async def touched(self, requests: Sequence[WorkRequest]) -> tuple[Touched | WorkFailure, ...]:
        found = await self._there.touched(requests)
        return tuple([await self._as_here(request, each) for request, each in zip(requests, found, strict=True)])

    async def _as_here(self, request: WorkRequest, found: Touched | WorkFailure) -> Touched | WorkFailure:
        """The node's copy of a repository knows nothing of the folder below its top that the task has here."""
        if not request.here or isinstance(found, WorkFailure):
            return found
        return msgspec.structs.replace(found, prefix=(await self._origin(request.repo)).prefix)

    async def _bring_back(self, origin: _Origin, attempt: AttemptId, head: str) -> str:
        """Brings an attempt's commit home; returns its ref. Where another orchestra's result has the name, that one stays and ours is put beside it."""
        source, target = self._node.end(origin.mirror), self._home.end(origin.repo)
        try:
            await fetch_back(source, target, {attempt: head})
        except Refused:
            beside = f"{result_ref(attempt)}-{head[:SHA_SHOWN]}"
            await send_commits(source, target, {beside: head}, strict=True)
            return beside
        return result_ref(attempt)

    def _forget(self, attempt: AttemptId, gone: LetGo) -> LetGo:
        self._known.pop(attempt, None)
        return gone


def _failure(attempt: AttemptId, error: OrchestraError) -> WorkFailure:
    code = {"node_failed": "failed"}.get(error.code, error.code.replace("_", "-"))
    return WorkFailure(attempt, code, error.message, error.hint)
