"""libtmux: a session with COUNT windows, each with the lightest program there is. Prints the seconds it took; then ends the server."""

import json
import os
import sys
import tempfile
import time

import libtmux


def main() -> None:
    count = int(sys.argv[1])
    for name in [name for name in os.environ if name.startswith("TMUX")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        started = time.perf_counter()
        server = libtmux.Server(socket_path=f"{folder}/s", config_file="/dev/null")
        session = server.new_session("bench", window_command="/bin/cat")
        for number in range(1, count):
            session.new_window(f"w{number}", attach=False, window_shell="/bin/cat")
        took = time.perf_counter() - started
        made = len(session.windows)
        server.kill()
    print(json.dumps({"seconds": took, "windows": made}))


main()
