"""The pure core: what the orchestra knows, what it may do next, and nothing about how.

No input or output, no clock, no randomness, no logging: same inputs, same bytes. `decide` may refuse, `evolve` is the only fold (live and on
replay), `effects_of` says what has to be done outside because of an event.
"""
