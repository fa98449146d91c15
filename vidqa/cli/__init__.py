"""The command line: parse, call, print, exit code. One module a command; none of them holds logic.

Knows the pipeline's functions and click. Heavy packages are imported by the pipeline when a command runs, never by
these modules, so that `vidqa --help` is quick.
"""
