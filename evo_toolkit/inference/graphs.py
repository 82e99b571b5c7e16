"""CUDA graphs of forwards that recur: launched as one, without Python between their kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from evo_kernels.backend import resolve

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

T = TypeVar("T")

_log = logging.getLogger("evo_toolkit")

# Wider models keep a GPU busy for longer than it takes to launch them, and copies of what goes in and
# comes out would cost them memory.
_WIDE = 2048


def wants_graphs(model: StripedHyena2) -> bool:
    """Whether a model is so narrow that launches, not kernels, would bound its forwards."""
    weight = model.embedding.weight
    if weight.device.type != "cuda" or model.config.width >= _WIDE:
        return False
    policy = model.policy
    x = weight.new_empty(0, dtype=policy.compute_dtype)
    chosen = resolve("forwards in CUDA graphs", policy.backend, x, rounding=policy.rounding)
    return chosen == "triton"


class Graphs:
    """Functions of trees of tensors, each captured once for every key and then replayed.

    A function must launch the same kernels on inputs of the same shapes, wait for nothing, and depend
    on nothing but its inputs. What a call returns is a copy of its own; tensors of the CPU among
    inputs and results are taken as they were at the capture.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._captured: dict[Hashable, _Captured] = {}
        self._pool: Any = None

    def __call__(self, key: Hashable, function: Callable[[Any], T], inputs: Any) -> T:
        """`function(inputs)`; `key` says everything beside the values of tensors that it depends on."""
        if not self.enabled:
            return function(inputs)
        if key not in self._captured:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            try:
                self._captured[key] = _Captured(function, inputs, self._pool)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                _log.warning("forwards are launched one kernel at a time: %s", error)
                self.enabled = False
                return function(inputs)
        found: T = self._captured[key](inputs)
        return found


class _Captured:
    """A graph with its inputs and results in place."""

    def __init__(self, function: Callable[[Any], Any], inputs: Any, pool: Any) -> None:
        leaves, spec = pytree.tree_flatten(inputs)
        self._inputs = [x.clone() if _on_gpu(x) else x for x in leaves]
        placed = pytree.tree_unflatten(self._inputs, spec)
        # Once as it is: kernels are compiled and attention is planned before the capture.
        function(placed)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            found = function(placed)
        self._results, self._spec = pytree.tree_flatten(found)

    def __call__(self, inputs: Any) -> Any:
        for mine, given in zip(self._inputs, pytree.tree_leaves(inputs), strict=True):
            if _on_gpu(mine):
                mine.copy_(given, non_blocking=True)
        self._graph.replay()
        copies: dict[int, Tensor] = {}  # states share tensors, and go on sharing them
        results = []
        for x in self._results:
            if isinstance(x, Tensor):
                if id(x) not in copies:
                    copies[id(x)] = x.clone()
                x = copies[id(x)]
            results.append(x)
        return pytree.tree_unflatten(results, self._spec)


def _on_gpu(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_cuda
