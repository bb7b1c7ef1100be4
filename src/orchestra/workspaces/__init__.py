"""Where attempts work: git worktrees and private copies on any machine, made and looked after through its transport."""
