"""Commands: one module per command, with the click command as `command`.

Each parses its options, calls the pipeline function of the same name, prints the result and returns the exit code.
`vidqa.cli.main.COMMANDS` lists the modules; they are imported on demand.
"""
