"""Attention of continuations, each over a prefix of its own."""

from evo_kernels.attention_forked.op import attention_forked, prefix_table
from evo_kernels.attention_forked.reference import attention_forked_reference

__all__ = ["attention_forked", "attention_forked_reference", "prefix_table"]
