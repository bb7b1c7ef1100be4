"""libtmux: the state and the screen text of every window of the server at SOCKET. Prints the median of ROUNDS, in seconds."""

import json
import statistics
import sys
import time

import libtmux


def main() -> None:
    path, rounds = sys.argv[1], int(sys.argv[2])
    server = libtmux.Server(socket_path=path, config_file="/dev/null")
    times, panes = [], 0
    for _ in range(rounds):
        started = time.perf_counter()
        found = [(pane.pane_id, pane.pane_pid, pane.pane_dead, pane.capture_pane()) for pane in server.panes]
        times.append(time.perf_counter() - started)
        panes = len(found)
    print(json.dumps({"seconds": statistics.median(times), "panes": panes}))


main()
