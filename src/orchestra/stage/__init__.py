"""What is pushed to a node: `worker.py` and `courier.py`. Nothing here is imported by the package; see docs/node.md."""
