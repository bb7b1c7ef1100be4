"""Drills: a real orchestra on this machine, with agents that ask a scripted model API, under the faults of a scenario."""
