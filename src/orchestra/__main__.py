"""`python -m orchestra`: the command line."""

from orchestra.edges.cli.main import main

if __name__ == "__main__":
    main()
