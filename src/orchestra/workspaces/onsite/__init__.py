"""What runs on the machine that has the repository. Its modules are sent there with each request; nothing is installed.

Standard library only, Python 3.8. They know each other by their full names, under which the bootstrap of `orchestra.workspaces.calling` registers them.
"""
