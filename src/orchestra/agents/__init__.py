"""Agent kinds: what turns a task into a process, and what the process left into an outcome. Pure; found by entry points."""
