"""The command line: thin commands over the library. `evo_toolkit.cli.main` is the entry point."""
