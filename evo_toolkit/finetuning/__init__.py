"""Learning from labelled sequences: examples, splits without leaks, heads, adapters.

Nothing here knows Lightning: what trains the network itself is in `evo_toolkit.training`.
"""
