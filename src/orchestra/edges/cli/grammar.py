"""The grammar all commands share: options that may stand anywhere, an example in every help, numbers of agents, and the one face of errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from orchestra.edges.cli.session import ROOT_DEFAULT, ROOT_VARIABLE, Session
from orchestra.errors import FACES, BadInput, OrchestraError, SettingsInvalid
from orchestra.ids import AGENTS_MAX

SETTINGS_HINT: Final = "docs/guides/settings.md says how settings are written, `orchestra config schema` what may be set"
EXIT_UNHEALTHY: Final = 1
"""What a look at something ends with that found it wanting."""
EXIT_INTERRUPTED: Final = 130
"""What shells report for a program that ended on Ctrl-C."""
EXIT_PIPE: Final = 141
"""What shells report for a program whose reader went away."""


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None and value is not False:
            setattr(context.ensure_object(Session), name, value)

    return remember


def _remember_settings(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> None:
    for text in value:
        path, mark, setting = text.partition("=")
        if not mark or not path:
            raise click.BadParameter(f"{text!r} is not of the form PATH=VALUE", ctx=context, param=parameter)
        context.ensure_object(Session).flags[path] = setting


def shared_options() -> list[click.Parameter]:
    """Returns the options that every command and group takes."""
    common: dict[str, Any] = {"expose_value": False, "is_eager": True}
    folder = click.Path(file_okay=False, path_type=Path)
    where = f"Folder the orchestra lives in.  [env: {ROOT_VARIABLE}; default: {ROOT_DEFAULT}]"
    return [
        click.Option(["--root"], type=folder, metavar="DIR", callback=_remember("root"), help=where, **common),
        click.Option(
            ["--set"],
            multiple=True,
            metavar="PATH=VALUE",
            callback=_remember_settings,
            help="A setting for this call, for example tasks.retries=0; see `config show`.",
            **common,
        ),
        click.Option(["--json"], is_flag=True, callback=_remember("json"), help="Write JSON for programs.", **common),
        click.Option(["-q", "--quiet"], is_flag=True, callback=_remember("quiet"), help="Write nothing but errors.", **common),
        click.Option(["-v", "--verbose"], is_flag=True, callback=_remember("verbose"), help="Say more, also about errors.", **common),
    ]


class Command(click.Command):
    """A command with the shared options and an example in its help."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        self.params.extend(shared_options())

    def invoke(self, ctx: click.Context) -> Any:
        """Runs it; an error in what was typed that names no remedy gets the help as one, and one in the settings what may be set."""
        try:
            return super().invoke(ctx)
        except SettingsInvalid as error:
            error.hint = error.hint or SETTINGS_HINT
            raise
        except BadInput as error:
            error.hint = error.hint or f"`{ctx.command_path} --help` shows how it is written"
            raise

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_example(formatter, self.example)


class Group(click.Group):
    """A noun; alone it shows its help."""

    def __init__(self, *args: Any, example: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        self.params.extend(shared_options())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_example(formatter, self.example)


def write_example(formatter: click.HelpFormatter, example: str) -> None:
    """Writes the example as it is to be typed."""
    with formatter.section("Example"):
        for line in example.splitlines():
            formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def session_of(context: click.Context) -> Session:
    """Returns the session of this call."""
    return context.ensure_object(Session)


if TYPE_CHECKING:
    NumbersBase = click.ParamType[tuple[int, ...]]
else:
    NumbersBase = click.ParamType  # older versions of click take no type argument


class AgentNumbers(NumbersBase):
    """`7`, `1,3,5-9`: numbers of agents, in the order written, each once."""

    name = "agents"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else parse_agents(str(value))


def parse_agents(text: str) -> tuple[int, ...]:
    """Returns the agents that a list such as `1,3,5-9` names.

    Raises:
        BadInput: It is not such a list, or names a number no agent can have.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().removeprefix("#").partition("-")
        low, high = _number(first, text), _number(last, text) if dash else _number(first, text)
        if low > high:
            raise BadInput(f"{part.strip()[:40]!r} runs backwards", field="agents", hint=f"write {high}-{low}")
        found.update(dict.fromkeys(range(low, high + 1)))
    return tuple(found)


def _number(text: str, whole: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= AGENTS_MAX:
        hint = f"write numbers from 1 to {AGENTS_MAX}, for example 7 or 1,3,5-9"
        raise BadInput(f"{whole[:40]!r} does not name agents", field="agents", hint=hint)
    return int(text)


def guarded(session: Session, args: Sequence[str], work: Callable[[], object]) -> int:
    """Runs a command and returns its exit code: the one place where errors get their face."""
    try:
        result = work()
        return result if isinstance(result, int) else 0
    except OrchestraError as error:
        session.render.error(error)
        return FACES[error.code].exit_code
    except click.UsageError as error:
        session.json = session.json or "--json" in args
        session.render.error(_usage_error(error))
        return FACES[BadInput.code].exit_code
    except click.ClickException as error:
        session.render.error(BadInput(error.format_message()))
        return FACES[BadInput.code].exit_code
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except (KeyboardInterrupt, click.Abort):
        session.render.note("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        drop_output()
        return EXIT_PIPE


def drop_output() -> None:
    """The reader is gone, as after `| head`: Python must not try to write the rest when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _usage_error(error: click.UsageError) -> BadInput:
    path = error.ctx.command_path if error.ctx is not None else "orchestra"
    name = error.param.human_readable_name if isinstance(error, click.BadParameter) and error.param is not None else ""
    message = error.message if isinstance(error, click.BadParameter) and error.message else error.format_message()
    return BadInput(message, field=name, hint=f"`{path} --help` shows how it is written")
