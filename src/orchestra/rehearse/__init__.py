"""Rehearsals: a plan is run with what its agents do recorded beforehand. Only the models are missing; windows, worktrees, checks and merges are real.

`scenario` reads the recording, `script` turns it into what a model says or a stand-in does, `plan` gives each task its part, `venue` makes folders and copies
that nothing else uses, `model` is the mock server, and `loopback` a network with no way out.
"""
