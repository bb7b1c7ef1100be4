"""ADAPTERS: how a node is reached (`transport`) and how its windows are driven (`tmux`)."""
