"""`python -m evo_toolkit`, the same as `evo-toolkit`."""

from __future__ import annotations

from evo_toolkit.cli.main import main

if __name__ == "__main__":
    main()
