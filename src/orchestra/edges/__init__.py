"""The interfaces: each parses, calls one use case, and renders. They decide nothing."""
