"""The coordinator's Unix socket: the use cases for the command line and for programs of the same user."""
