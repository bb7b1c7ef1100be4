"""The command line: one module a noun, one grammar, one renderer, one way to reach the orchestra."""
