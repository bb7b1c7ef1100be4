"""What a port means, as tests: one kit a port. An adapter, the shipped doubles included, is whatever passes its kit.

A kit is a class with `test_*` methods and no test framework in it. A caller derives a `Test...` class and supplies the adapter.
"""
