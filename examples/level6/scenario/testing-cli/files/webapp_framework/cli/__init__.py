"""The command line: `python3 -m webapp_framework.cli routes|serve MODULE:APPLICATION`, or `check`."""
