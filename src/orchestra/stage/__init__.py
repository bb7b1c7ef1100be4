"""What is pushed to a node, where it is a package of its own, `orchestra_stage`. The contract is docs/node.md.

Standard library only, Python 3.8. The modules know each other by relative names and nothing of the house; nothing of the house imports them.
`worker` and `courier` are started, `rehearsal` is run by its path and stands alone.
"""
