"""Attention of several continuations over one shared prefix and each one's own suffix."""

from evo_kernels.attention_two_segment.op import attention_two_segment

__all__ = ["attention_two_segment"]
