"""From an assigned attempt to the order its worker gets."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from orchestra.agents.access import Access, keys_of
from orchestra.agents.adapter import ATTEMPT_DIR, SPACE_DIR, STAGE_DIR, Adapter, Context, Launch, sessions_move
from orchestra.core.model import AgentSpec, Check, Limits, TaskSpec
from orchestra.engine.earlier import Earlier
from orchestra.engine.returns import KIND_ERRORS, ReturnOptions
from orchestra.engine.translate import Finder
from orchestra.errors import BadInput
from orchestra.ids import AttemptId
from orchestra.intake.check_scripts import with_command
from orchestra.node import AttemptOrder
from orchestra.views import REHEARSAL
from orchestra.workspace import Workspace

SPEC_VERSION: Final = 1
TITLE_CHARACTERS_MAX: Final = 100
REPAIRED: Final = (
    "Your folder is now as the attempt that failed its checks left it, also where something else is said above. What it did is there as changes that are "
    "not committed. Go on from there."
)
GONE: Final = "What the attempt that failed its checks did is not in your folder: begin anew."
MOVED: Final = (
    "You go on with an earlier session, in another folder: {}. What you did before, for other tasks, is in it as far as it has been merged. "
    "Use no path to the folder that you had then; it is gone."
)
REPORTS: Final = {"ORCHESTRA_REPORTER": f"{STAGE_DIR}reporter.py", "ORCHESTRA_REPORTS_DIR": f"{ATTEMPT_DIR}reports"}
"""What counts the tests that a check runs, and where it leaves them as JUnit XML, beside what the worker keeps of the attempt."""


class SandboxOptions(msgspec.Struct, frozen=True):
    """Settings of the sandbox; reasons and defaults in `orchestra.settings`."""

    mode: str = "off"
    hide: tuple[str, ...] = ()
    hide_here: tuple[str, ...] = ()
    """The same on this machine only: what the coordinator keeps."""
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()


class OrderOptions(msgspec.Struct, frozen=True):
    """Settings of attempts; reasons and defaults in `orchestra.settings`."""

    grace_ms: int = 5000
    umask: int = 0o022
    """Of the files agents make: the coordinator's own user's, not the tight one of its own files."""
    output_file_bytes: int = 16 << 20
    line_bytes: int = 65_536
    marker_prefix: str = "---END-OF-OUTPUT-"
    marker_suffix: str = "---"
    limits: Limits = Limits()
    """Used where neither a task nor its agent names any."""
    kinds: Mapping[str, dict[str, str]] = {}
    """Settings of each agent kind."""
    gateway_kinds: Mapping[str, tuple[str, ...]] = {}
    """Kinds whose attempts go through the gateway -> the APIs they reach there."""
    gateway_logins: Mapping[str, str] = {}
    """See `Access.logins`."""
    checks: Mapping[str, str] = {}
    """Commands that take the place of what is found in a task's folder, by the name of the check's script."""
    affinity_sessions: bool = True
    """A task goes on with the session of the last one with the same affinity on its agent."""
    fence: bool = False
    """The node stops an attempt when it has not heard of the coordinator for too long."""
    rehearsal: bool = False
    sandbox: SandboxOptions = SandboxOptions()
    returns: ReturnOptions = ReturnOptions()


class OrderMaker:
    """Makes orders; the only place that knows both an agent kind's launch and the worker's format."""

    def __init__(self, find_adapter: Finder, options: OrderOptions) -> None:
        self._find = find_adapter
        self.options = options

    def apis_for(self, kind: str) -> tuple[str, ...]:
        """Returns the APIs that attempts of the kind reach through the gateway."""
        return self.options.gateway_kinds.get(kind, ())

    def make(
        self,
        spec: TaskSpec,
        attempt: AttemptId,
        slot: AgentSpec,
        *,
        remote: bool = False,
        earlier: Earlier | None = None,
        place: Workspace | None = None,
        access: Access | None = None,
    ) -> AttemptOrder:
        """Returns the order.

        Args:
            spec: What is to be done.
            attempt: Its number is the fence.
            slot: Who does it.
            remote: The node is another machine than the one whose folders the task names.
            earlier: What the attempts before came to.
            place: Where it works, if not in the task's own folder.
            access: How it reaches the model APIs, if a gateway stands before them. No key that the gateway holds is let through then.

        Raises:
            BadInput: The task's kind cannot run its payload.
        """
        try:
            before = earlier or Earlier()
            adapter = self._find(spec.kind)
            session = before.session if before.agent == slot.id and _fits(before, adapter, place) else ""
            context = Context(
                attempt.number,
                slot.id,
                session=session,
                settings=self.options.kinds.get(spec.kind, {}),
                cost_so_far_usd_micros=before.cost_usd_micros,
                access=access,
            )
            launch = adapter.launch(with_feedback(spec, _told(before, place, resumed=bool(session))), context)
        except BadInput:
            raise
        except KIND_ERRORS as exc:  # one task of a kind that is broken must not end the coordinator
            raise BadInput(f"agent kind {spec.kind!r} failed: {exc!r}", hint="tell whoever made it") from exc
        values = self._values(spec, attempt, slot, launch)
        if access is not None:
            values["env"] = access.laid_over(
                values["env"]
            )  # also where the task names an address or key of its own: budgets hold for it too
            own = self.options.kinds.get(spec.kind, {}).get("api_key_variable", "") if access.held else ""
            kept = {*keys_of(access.held), *access.environment, own}
            values["env_pass"] = [name for name in values["env_pass"] if name not in kept]
        if place is not None:
            values["cwd"] = place.cwd
            values |= {"base": place.base} if place.base else {}
        elif remote and spec.workspace and spec.workspace_here:
            values["cwd"] = SPACE_DIR + space_name(spec.workspace)
        if sandbox := sandbox_of(self.options.sandbox, spec, launch, place, remote=remote):
            values["sandbox"] = sandbox
        return AttemptOrder(attempt, slot.id, values, launch.files, launch.agent_files)

    def make_checks(self, spec: TaskSpec, attempt: AttemptId, slot: AgentSpec, *, remote: bool, place: Workspace) -> AttemptOrder:
        """Returns the order once more for its checks alone, in another place. Where a gateway stands before model APIs, its pass has ended with the attempt:
        they get none, and no key in its stead."""
        order = self.make(spec, attempt, slot, remote=remote, place=place)
        if apis := self.apis_for(spec.kind):
            kept = {*keys_of(apis), self.options.kinds.get(spec.kind, {}).get("api_key_variable", "")}
            order.spec["env_pass"] = [name for name in order.spec["env_pass"] if name not in kept]
            order.spec["env"] = {name: value for name, value in order.spec["env"].items() if name not in kept}
        return order

    def _values(self, spec: TaskSpec, attempt: AttemptId, slot: AgentSpec, launch: Launch) -> dict[str, Any]:
        options = self.options
        success: dict[str, Any] = {"codes": list(launch.success.codes), "signal": None}
        if launch.success.signal_type:
            success["signal"] = {"type": launch.success.signal_type, "fields": launch.success.signal_fields}
        return {
            "v": SPEC_VERSION,
            "task": attempt.task,
            "attempt": attempt.number,
            "agent": slot.id,
            "argv": list(launch.argv),
            "env": {**launch.env, **spec.env, **(REPORTS if spec.checks else {})},
            "env_pass": list(launch.env_pass),
            "cwd": spec.workspace or None,
            "stdin": launch.stdin,
            "timeout_ms": spec.timeout_ms,
            "grace_ms": options.grace_ms,
            "umask": options.umask,
            "limits": _limits(spec.limits, slot.limits, options.limits),
            "output": {"file_bytes_max": options.output_file_bytes, "line_bytes_max": options.line_bytes, "view": launch.view},
            "signals": list(launch.signals),
            "success": success,
            "checks": [_check(check, options.checks) for check in spec.checks],
            "marker": f"{options.marker_prefix}{uuid.uuid4()}{options.marker_suffix}",
            "title": f"{REHEARSAL} {title(spec)}" if options.rehearsal else title(spec),
            **({"fence": True} if options.fence else {}),
            **({"returns": spec.returns} if spec.returns else {}),
        }


def _fits(before: Earlier, adapter: Adapter, place: Workspace | None) -> bool:
    """Tells whether a session can be gone on with in a place of its own: the kind can, and what it remembers of work to be repaired is true there."""
    return place is None or (sessions_move(adapter) and (before.repairs is None or place.repairs))


def _told(before: Earlier, place: Workspace | None, *, resumed: bool) -> str:
    """Returns what is added to the prompt: what is to be returned, what went wrong, and how the folder has to do with it."""
    parts = [before.brief, before.feedback]
    if before.repairs is not None and place is not None:
        parts.append(REPAIRED if place.repairs else GONE)
    if resumed and place is not None:
        parts.append(MOVED.format(place.cwd))
    return "\n\n".join(filter(None, parts))


def with_feedback(spec: TaskSpec, feedback: str) -> TaskSpec:
    """Returns the task with what went wrong before added to its prompt; what is no prompt stays as it is."""
    if not feedback or spec.payload.type != "analysis":
        return spec
    content = f"{spec.payload.content.rstrip()}\n\n{feedback}\n"
    return msgspec.structs.replace(spec, payload=msgspec.structs.replace(spec.payload, content=content))


def title(spec: TaskSpec) -> str:
    """Returns what the window shows of the task: its name and the first words of its description, printable characters only."""
    words = " ".join(spec.description.split())
    text = f"{spec.id}: {words}" if words else str(spec.id)
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)[:TITLE_CHARACTERS_MAX]


def space_name(workspace: str) -> str:
    """Returns the name of a node's own folder that stands for a workspace of the machine the plan was read on."""
    return f"{hashlib.sha256(workspace.encode()).hexdigest()[:12]}"


def sandbox_of(options: SandboxOptions, spec: TaskSpec, launch: Launch, place: Workspace | None, *, remote: bool) -> dict[str, Any]:
    """Returns what the worker is to know of the sandbox, nothing if there is to be none. A task may want one, but not be without where all shall have one."""
    mode = spec.sandbox if spec.sandbox and options.mode != "on" else options.mode
    if mode == "off" or (mode == "auto" and not launch.sandbox):
        return {}
    hide = (*options.hide, *(() if remote else options.hide_here))
    writable = (*options.writable, *((place.path,) if place is not None else ()))
    worktree = {"worktree": place.path} if place is not None and place.kind == "git" else {}
    argv = {"argv": list(launch.sandbox_argv)} if launch.sandbox_argv else {}
    return {"mode": mode, "hide": list(hide), "readable": list(options.readable), "writable": list(writable), **worktree, **argv}


def _limits(*levels: Limits) -> dict[str, int]:
    """Takes each limit from the first that names it: the task, its agent, the settings."""
    chosen = {name: next(filter(None, (getattr(limits, name) for limits in levels)), 0) for name in Limits.__struct_fields__}
    return {name: value for name, value in chosen.items() if value}


def _check(check: Check, commands: Mapping[str, str]) -> dict[str, Any]:
    return {"name": check.name, "argv": list(with_command(check.argv, commands)), "timeout_ms": check.timeout_ms}
