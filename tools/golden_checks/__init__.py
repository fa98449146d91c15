"""What `tools/check_golden.py` and the tests compare: one module a fixture, each `check(Fixture) -> Report`."""
