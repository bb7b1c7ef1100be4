"""Adapters of the `Ledger` port.

- `memory`: nothing survives the process; for tests and dry runs.
- `sqlite`: the embedded default, one machine, power-safe.
- `care`: what a person does to an SQLite ledger: verify, repair, back up, restore, export.
"""
