"""Context parallelism: one sequence divided over ranks, each of which holds a contiguous part."""

from evo_toolkit.parallel.context import ContextParallel, context_parallel

__all__ = ["ContextParallel", "context_parallel"]
