"""Miyabi Orchestra: up to 200 coding agents, each in its own tmux window, driven as one."""

__version__ = "0.1.0"
