"""The lab for people and scripts.

python -m orchestra.testing.lab up FOLDER     builds a lab and keeps it until Ctrl-C or SIGTERM
python -m orchestra.testing.lab FOLDER ...    gives orders to it from another terminal
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from orchestra.errors import FACES, OrchestraError
from orchestra.testing.lab import control
from orchestra.testing.lab.lab import HOME_BYTES, Lab

PROGRAM: Final = f"{shlex.quote(sys.executable)} -m orchestra.testing.lab"
"""As it can be typed: the interpreter that has the lab, wherever it is, under sudo too."""
STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    try:
        if argv[:1] == ["up"]:
            return _up(argv[1:])
        return _order(argv)
    except OrchestraError as error:
        return _complain(error.message, error.hint, FACES[error.code].exit_code)


def _complain(message: str, hint: str, exit_code: int) -> int:
    sys.stderr.write(f"error: {message}\n" + (f"hint: {hint}\n" if hint else ""))
    return exit_code


def _up(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} up", description="Builds a lab and keeps it until Ctrl-C or SIGTERM. Needs root.")
    parser.add_argument("folder", type=Path, help="where its keys, configurations and logs are kept")
    parser.add_argument("--nodes", default="mugen,majin", help="names of the machines, with commas (default: %(default)s)")
    parser.add_argument("--home-bytes", type=int, default=HOME_BYTES, help="size of each machine's /home (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON line instead of text once the lab is up")
    chosen = parser.parse_args(argv)
    for number in STOPPING:
        signal.signal(number, _stop)
    try:
        with Lab(chosen.folder, chosen.nodes.split(","), home_bytes=chosen.home_bytes) as lab:
            sys.stdout.write((_as_json(lab) if chosen.json else _as_text(lab)) + "\n")
            sys.stdout.flush()
            control.serve(lab)
    except KeyboardInterrupt:
        return 0
    return 0


def _stop(number: int, frame: object) -> None:
    """Interrupts once; a second signal must not disturb the taking down."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _as_json(lab: Lab) -> str:
    nodes = {node.name: {"address": node.address, "user": node.user, "init_pid": node.init_pid} for node in lab.nodes.values()}
    facts = {"folder": lab.folder, "ssh_config": lab.ssh_config, "known_hosts": lab.known_hosts, "hub": lab.hub_argv([]), "nodes": nodes}
    return json.dumps(facts, default=str)


def _as_text(lab: Lab) -> str:
    hub, first = shlex.join(lab.hub_argv([])), next(iter(lab.nodes))
    return f"""\
The lab is up: {", ".join(f"{node.name} ({node.address})" for node in lab.nodes.values())}. Ctrl-C takes it down.

Run a command in the hub's network:   {hub} COMMAND
Log in to a machine:                  {hub} ssh -F {shlex.quote(str(lab.ssh_config))} {first}
Break something:                      {PROGRAM} {shlex.quote(str(lab.folder))} cut {first}
All orders:                           {PROGRAM} --help"""


def _order(argv: Sequence[str]) -> int:
    commands = {"nodes": "list the machines", "add": "add a machine", **{name: text for name, (text, _) in control.NODE_COMMANDS.items()}}
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n" + "\n".join(f"  {name:<22}{text}" for name, text in commands.items()),
    )
    parser.add_argument("folder", type=Path, help="the folder of a running lab")
    parser.add_argument("command", choices=list(commands), metavar="command", help="see below")
    parser.add_argument("node", nargs="?", default="", help="name of the machine")
    parser.add_argument("argument", nargs="?", default="", help="see below")
    chosen = parser.parse_args(argv)
    answer = control.send(chosen.folder, control.Order(chosen.command, chosen.node, chosen.argument))
    if answer.error:
        return _complain(answer.error, answer.hint, 1)
    if answer.text:
        sys.stdout.write(answer.text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
