"""When cuDNN's fused attention is worth its planning: the bounds of everything that calls it.

On Hopper flash attention takes up to 1.7 times as long, but cuDNN plans for 40 ms whenever it sees a new
shape. How soon that is paid back depends on how often a shape comes again, hence two bounds, both in
pairs of a query and a key that it sees. Times are those of 32 heads of 128 channels on an H200.
"""

from __future__ import annotations

import torch

RECURRING_SHAPE = 2**21
"""For whole sequences: training has one shape and scoring a short list. From 2,048 positions on cuDNN
saves 0.06 ms a call, so that some 600 calls pay for the plan, which is a hundred batches of a 7B model."""

NEW_SHAPE = 2**27
"""For continuations, whose keys grow from call to call: a plan serves the layers of one or two steps. Here
it saves about 3 ms a call, so that a dozen calls pay for it."""


def worth_planning(device: torch.device, pairs: int, bound: int) -> bool:
    """Whether cuDNN is the faster one for so many pairs on this GPU; the bound is one of the two above."""
    return pairs >= bound and torch.cuda.get_device_capability(device)[0] >= 9
