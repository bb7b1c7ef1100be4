"""CLI Agent Orchestrator with its mock provider: a server on the loopback interface, COUNT agents one after the other. Prints seconds an agent.

The mock provider runs a program `mock_cli` that the package does not ship: a loop that prints a prompt, as the provider's contract has it.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

MOCK = """#!/bin/sh
printf '\\342\\235\\257 '
while read -r line; do printf '> MOCK: %s\\n\\342\\235\\257 ' "$line"; done
"""
START_S = 60


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def post(base: str, path: str, **query: str) -> dict[str, object]:
    request = urllib.request.Request(f"{base}{path}?{urllib.parse.urlencode(query)}", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.loads(reply.read())
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{path}: {error.code} {error.read().decode(errors='replace')[:300]}") from error


def wait_up(base: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(f"{base}/health", timeout=2).read()
            return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not come up, code {server.poll()}") from None
            time.sleep(0.1)


def measure(base: str, count: int, folder: str) -> list[float]:
    times = []
    session = ""
    for _ in range(count):
        started = time.perf_counter()
        if not session:
            made = post(base, "/sessions", provider="mock_cli", agent_profile="developer", session_name="bench", working_directory=folder)
            session = str(made["session_name"])
        else:
            post(base, f"/sessions/{session}/terminals", provider="mock_cli", agent_profile="developer", working_directory=folder)
        times.append(time.perf_counter() - started)
    return times


def main() -> None:
    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="cao-", ignore_cleanup_errors=True) as folder:
        programs = Path(folder) / "bin"
        programs.mkdir()
        (programs / "mock_cli").write_text(MOCK)
        (programs / "mock_cli").chmod(0o755)
        work = Path(folder) / "home" / "work"
        work.mkdir(parents=True)
        (work.parent / ".profile").write_text(f'PATH="{programs}:$PATH"\n')  # a login shell makes a new PATH
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TMUX")}
        path = f"{programs}:{Path(sys.executable).parent}:{kept['PATH']}"
        environment = {
            **kept,
            "HOME": f"{folder}/home",
            "TMUX_TMPDIR": folder,
            "PATH": path,
            "SHELL": "/bin/sh",
            "LC_ALL": "C.UTF-8",
            "PS1": "$ ",
        }
        port = free_port()
        environment["CAO_API_PORT"] = str(port)
        with open(f"{folder}/log", "wb") as log:
            server = subprocess.Popen(
                [str(Path(sys.executable).parent / "cao-server"), "--host", "127.0.0.1", "--port", str(port)],
                env=environment,
                stdout=log,
                stderr=log,
            )
        try:
            base = f"http://127.0.0.1:{port}"
            wait_up(base, server)
            times = measure(base, count, str(work))
        except SystemExit:
            sys.stderr.write(Path(f"{folder}/log").read_text(errors="replace")[-1500:])
            raise
        finally:
            subprocess.run(["tmux", "kill-server"], env=environment, stderr=subprocess.DEVNULL, check=False)
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
    print(json.dumps({"seconds_an_agent": sum(times) / len(times), "all": times}))


main()
