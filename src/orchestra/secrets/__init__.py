"""Adapters of the port `secret`: environment, file, command."""
