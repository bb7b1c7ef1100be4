"""Which task goes next, and to whom: pure functions over the state, and the one queue that remembers what is ready.

Assignment is late: a task is given to an agent only when that agent is free, so there is nothing to steal from anybody (`docs/adr/0004`).
"""
