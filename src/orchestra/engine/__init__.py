"""The imperative shell: one loop that decides and commits, a dispatcher that acts, services with one start and stop contract."""
