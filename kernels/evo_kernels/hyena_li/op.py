"""Public functions of Hyena-LI, and the operators that autograd and the compiler see.

`evo_kernels::hyena_li` and `evo_kernels::hyena_li_backward` are opaque to torch.compile, and each
allocates what its fake says. An output or gradient that is not asked for is an empty tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evo_kernels.autograd import gradients_through_twin
from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_qkv, check_shape
from evo_kernels.hyena_li.layout import num_tiles, padded_length, padded_poles
from evo_kernels.hyena_li.reference import (
    LIState,
    hyena_li_adjoint_state_reference,
    hyena_li_end_state_reference,
    hyena_li_reference,
)

MAX_STEP_POSITIONS = 16
"""Up to here the recurrence, position by position, beats a whole tile."""


def _rows(x: Tensor, length: int, channels: int) -> Tensor:
    """An empty `[B, length, channels]` whose memory is channel-first, in rows of whole eights."""
    rows = x.new_empty((x.shape[0], channels, padded_length(length)))
    return rows[:, :, :length].transpose(1, 2)


@torch.library.custom_op("evo_kernels::hyena_li", mutates_args=())
def _forward(
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    modal: Tensor | None,
    save_states: bool,
    return_modal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from evo_kernels.hyena_li.forward import launch_forward

    y, tile_states, modal_end = launch_forward(
        qkv, featurizer, log_poles, residues, skip, feature_tail, modal,
        save_states=save_states, return_modal=return_modal,
    )  # fmt: skip
    none = log_poles.new_empty(0, dtype=torch.float32)
    return (
        y,
        none if tile_states is None else tile_states,
        none.clone() if modal_end is None else modal_end,
    )


@_forward.register_fake
def _(
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    modal: Tensor | None,
    save_states: bool,
    return_modal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    B, L, _channels = qkv.shape
    D, N = log_poles.shape
    states = (B, D, num_tiles(L), padded_poles(N))
    return (
        _rows(qkv, L, D),
        qkv.new_empty(states if save_states else (0,), dtype=torch.float32),
        qkv.new_empty((B, D, N) if return_modal else (0,), dtype=torch.float32),
    )


@torch.library.custom_op("evo_kernels::hyena_li_backward", mutates_args=())
def _backward(
    dy: Tensor,
    d_modal_end: Tensor | None,
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    tile_states: Tensor,
    needs_input: bool,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from evo_kernels.hyena_li.backward import launch_backward

    return launch_backward(
        dy, d_modal_end, qkv, featurizer, log_poles, residues, skip, feature_tail, tile_states,
        needs_input=needs_input, needs_weights=needs_weights,
    )  # fmt: skip


@_backward.register_fake
def _(
    dy: Tensor,
    d_modal_end: Tensor | None,
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    tile_states: Tensor,
    needs_input: bool,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, L, channels = qkv.shape
    D, N = log_poles.shape

    def weight(*shape: int) -> Tensor:
        return qkv.new_empty(shape if needs_weights else (0,), dtype=torch.float32)

    return (
        _rows(qkv, L, channels) if needs_input else qkv.new_empty(0),
        weight(channels, 3),
        weight(D, N),
        weight(D, N),
        weight(D),
        qkv.new_empty(0) if feature_tail is None else torch.empty_like(feature_tail),
        qkv.new_empty((B, D, N), dtype=torch.float32),
    )


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    qkv, featurizer, log_poles, residues, skip, feature_tail, modal, _, return_modal = inputs
    _, tile_states, modal_end = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(tile_states, *(() if return_modal else (modal_end,)))
    ctx.save_for_backward(
        qkv, featurizer, log_poles, residues, skip, feature_tail, modal, tile_states
    )


def _twin(
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    modal: Tensor | None,
) -> tuple[Tensor, Tensor]:
    state = None if feature_tail is None or modal is None else LIState(feature_tail, modal)
    y, end = hyena_li_reference(qkv, featurizer, log_poles, residues, skip, state, None)
    return y, end.modal


def _autograd(
    ctx: Any, dy: Tensor | None, _d_states: Tensor | None, d_modal_end: Tensor | None
) -> tuple[Tensor | None, ...]:
    *inputs, tile_states = ctx.saved_tensors
    qkv, featurizer, log_poles, residues, skip, feature_tail, modal = inputs
    needs = ctx.needs_input_grad
    if dy is None:
        dy = torch.zeros_like(qkv[..., : log_poles.shape[0]])
    if torch.is_grad_enabled():
        return (*gradients_through_twin(_twin, inputs, (dy, d_modal_end)), None, None)
    d_qkv, d_featurizer, d_log_poles, d_residues, d_skip, d_tail, d_modal = _backward(
        dy, d_modal_end, qkv, featurizer, log_poles, residues, skip, feature_tail, tile_states,
        # The old state's gradient comes from the inputs'.
        needs[0] or needs[5], any(needs[1:5]),
    )  # fmt: skip
    return (
        d_qkv if needs[0] else None,
        d_featurizer.to(featurizer.dtype) if needs[1] else None,
        d_log_poles.to(log_poles.dtype) if needs[2] else None,
        d_residues.to(residues.dtype) if needs[3] else None,
        d_skip.to(skip.dtype) if needs[4] else None,
        d_tail if needs[5] else None,
        d_modal.to(modal.dtype) if needs[6] else None,
        None,
        None,
    )


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _channel_first(x: Tensor) -> Tensor:
    """The same values with contiguous positions in rows of whole eights; no copy where that holds."""
    L = x.shape[1]
    if x.stride(1) == 1 and x.stride(2) % 8 == 0 and x.stride(2) >= L:
        return x
    if not torch.compiler.is_compiling():  # a compiled graph has no place for messages
        from evo_kernels.hyena_li.forward import say_copy

        say_copy(x)
    rows = torch.nn.functional.pad(x.transpose(1, 2), (0, padded_length(L) - L))
    return rows.contiguous()[:, :, :L].transpose(1, 2)


def _next_tail(qkv: Tensor, tail: Tensor | None) -> Tensor:
    """Last two inputs of the featurizer, `[B, 2, 3D]`, in memory of their own."""
    if qkv.shape[1] >= 2:
        return qkv[:, -2:].clone(memory_format=torch.contiguous_format)
    before = torch.zeros_like(qkv) if tail is None else tail[:, 1:].to(qkv.dtype)
    return torch.cat([before, qkv], dim=1)


# With more poles a tile's states do not fit in the shared memory of every GPU.
_MAX_POLES = 32


def _unsupported(qkv: Tensor, featurizer: Tensor, log_poles: Tensor, needs_gradient: bool) -> str:
    taps, poles = featurizer.shape[1], log_poles.shape[1]
    if taps != 3:
        return f"it has featurizers of 3 taps, not {taps}"
    if not 1 <= poles <= _MAX_POLES:
        return f"it has 1 to {_MAX_POLES} poles a channel, not {poles}"
    if needs_gradient and qkv.is_cuda and torch.cuda.get_device_capability(qkv.device)[0] == 10:
        return "triton 3.6.0 does not compile its backward for compute capability 10"
    return ""


def _check(
    qkv: Tensor, featurizer: Tensor, log_poles: Tensor, state: LIState | None
) -> tuple[int, int]:
    B, L, D = check_qkv(qkv, featurizer)
    check_shape("log_poles", log_poles, (D, None))
    if state is not None:
        check_shape("state.featurizer", state.featurizer, (B, featurizer.shape[1] - 1, 3 * D))
        check_shape("state.modal", state.modal, (B, D, log_poles.shape[1]))
    return L, D


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def hyena_li(
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    state: LIState | None = None,
    *,
    return_state: bool = False,
    backend: Backend = "auto",
    rounding: torch.dtype | None = None,
) -> tuple[Tensor, LIState | None]:
    """Return `q * (causal_conv(h, k * v) + skip * k * v)` after the 3-tap featurizers.

    The filter is implicit: `h[t] = sum_n residues[:, n] * exp(log_poles[:, n] * t)`, one per channel.

    Shapes: B batch, L positions in this chunk, D channels, N poles per channel.

    Args:
        qkv: Projected inputs in blocks [q | k | v], `[B, L, 3D]`. The kernel reads it in place when
            its memory is channel-first (`stride(1) == 1`) in rows of whole eights, and copies it
            otherwise.
        featurizer: Depthwise taps, lag 0 first, `[3D, 3]`.
        log_poles: Logarithms of the real poles, negative, `[D, N]`.
        residues: `[D, N]`.
        skip: One weight per channel, `[D]`.
        state: What the positions before this chunk left; None means zeros.
        backend: "triton" (never falls back), "reference", or "auto" (Triton for bfloat16 and float16
            inputs on CUDA GPUs of compute capability 8.0 or later, the twin elsewhere). The forward
            kernel is good to 1e-5 before the output is rounded, the backward's products take one
            bfloat16 of the gradient.
        rounding: Round to this dtype where the released implementation does (after the
            featurizer, the gate, the convolution, the skip and their sum); None keeps float32.

    Returns:
        `[B, L, D]` in the dtype of `qkv` (sums are float32), and the new state if asked for. From the
        kernel its memory is channel-first, or channel-last for a few positions without gradients.

    Raises:
        KernelError: if shapes disagree.
        KernelUnavailableError: for "triton" where the kernel cannot run.

    Source: StripedHyena 2 paper, section 2; the scan is the standard chunked form of a diagonal
    linear recurrence.
    """
    L, D = _check(qkv, featurizer, log_poles, state)
    check_shape("residues", residues, tuple(log_poles.shape))
    check_shape("skip", skip, (D,))
    tail, modal = (None, None) if state is None else state
    needs_gradient = _needs_gradient(qkv, featurizer, log_poles, residues, skip, tail, modal)
    unsupported = _unsupported(qkv, featurizer, log_poles, needs_gradient)
    if resolve("hyena_li", backend, qkv, unsupported=unsupported, rounding=rounding) == "reference":
        y, new_state = hyena_li_reference(
            qkv, featurizer, log_poles, residues, skip, state, rounding
        )
        return y, new_state if return_state else None
    if L <= MAX_STEP_POSITIONS and not needs_gradient:
        y, *end = hyena_li_step_forward(qkv, featurizer, log_poles, residues, skip, tail, modal)
        return y, LIState(*end) if return_state else None
    y, _, modal_end = _forward(
        _channel_first(qkv), featurizer, log_poles, residues, skip, tail, modal,
        needs_gradient, return_state,
    )  # fmt: skip
    return y, LIState(_next_tail(qkv, tail), modal_end) if return_state else None


@torch.library.custom_op("evo_kernels::hyena_li_step_forward", mutates_args=())
def hyena_li_step_forward(
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    modal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A few positions by the recurrence itself, without gradients: generation.

    Args:
        qkv: `[B, L, 3D]` of any strides.
        feature_tail: `[B, 2, 3D]`; modal: `[B, D, N]`; both or neither.

    Returns:
        `[B, L, D]`, and the feature tail and modal state after these positions.
    """
    from evo_kernels.hyena_li.forward import launch_step

    return launch_step(qkv, featurizer, log_poles, residues, skip, feature_tail, modal)


@hyena_li_step_forward.register_fake
def _(
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    modal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    B, L, channels = qkv.shape
    return (
        qkv.new_empty((B, L, channels // 3)),
        qkv.new_empty((B, 2, channels)),
        qkv.new_empty((B, *log_poles.shape), dtype=torch.float32),
    )


@torch.library.custom_op("evo_kernels::hyena_li_end_state", mutates_args=())
def _end_state(
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    feature_tail: Tensor | None,
    modal: Tensor | None,
) -> Tensor:
    from evo_kernels.hyena_li.forward import launch_end_state

    return launch_end_state(qkv, featurizer, log_poles, feature_tail, modal)


@_end_state.register_fake
def _(
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    feature_tail: Tensor | None,
    modal: Tensor | None,
) -> Tensor:
    return qkv.new_empty((qkv.shape[0], *log_poles.shape), dtype=torch.float32)


def hyena_li_end_state(
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    state: LIState | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Return the modal state after the last position, `[B, D, N]`, from k and v alone.

    What `hyena_li(..., return_state=True)` returns as `state.modal`, for half of the work: the first
    pass of a sequence that is split over devices. Without gradients.

    Args:
        qkv, featurizer, log_poles, state, backend: As in `hyena_li`.

    Raises:
        KernelError: if shapes disagree.
        KernelUnavailableError: for "triton" where the kernel cannot run.
    """
    _check(qkv, featurizer, log_poles, state)
    chosen = resolve(
        "hyena_li_end_state",
        backend,
        qkv,
        unsupported=_unsupported(qkv, featurizer, log_poles, False),
    )
    with torch.no_grad():
        if chosen == "reference":
            return hyena_li_end_state_reference(qkv, featurizer, log_poles, state)
        tail, modal = (None, None) if state is None else state
        return _end_state(_channel_first(qkv), featurizer, log_poles, tail, modal)


@torch.library.custom_op("evo_kernels::hyena_li_adjoint_state", mutates_args=())
def _adjoint_state(
    dy: Tensor,
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    feature_tail: Tensor | None,
) -> Tensor:
    from evo_kernels.hyena_li.backward import launch_backward

    # The backward kernel with nothing wanted but what it carries to the left: of that k, v, the skip and
    # the states are no part, and the compiler leaves their loads out.
    B, L, _ = qkv.shape
    D, N = log_poles.shape
    unread = log_poles.new_zeros((B, D, num_tiles(L), padded_poles(N)), dtype=torch.float32)
    return launch_backward(
        dy, None, qkv, featurizer, log_poles, residues, unread[0, :, 0, 0], feature_tail, unread,
        needs_input=False, needs_weights=False,
    )[-1]  # fmt: skip


@_adjoint_state.register_fake
def _(
    dy: Tensor,
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    feature_tail: Tensor | None,
) -> Tensor:
    return qkv.new_empty((qkv.shape[0], *log_poles.shape), dtype=torch.float32)


def hyena_li_adjoint_state(
    dy: Tensor,
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    feature_tail: Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Return the gradient of `state.modal` that `hyena_li` was given, `[B, D, N]`, from dy and q alone.

    `residues * sum_j exp(log_poles (j + 1)) dy_j q_j`, the mirror image of `hyena_li_end_state` and as
    cheap: the first pass backward of a sequence that is split over devices. Without gradients.

    Args:
        dy: Gradient of the output, `[B, L, D]`. That of the end state, if there is one, comes on top,
            times `exp(log_poles L)`.
        qkv, featurizer, log_poles, residues, backend: As in `hyena_li`.
        feature_tail: `state.featurizer` of the state that came in, or None for zeros.

    Raises:
        KernelError: if shapes disagree.
        KernelUnavailableError: for "triton" where the kernel cannot run.
    """
    L, D = _check(qkv, featurizer, log_poles, None)
    check_shape("dy", dy, (qkv.shape[0], L, D))
    check_shape("residues", residues, tuple(log_poles.shape))
    if feature_tail is not None:
        check_shape("feature_tail", feature_tail, (qkv.shape[0], featurizer.shape[1] - 1, 3 * D))
    unsupported = _unsupported(qkv, featurizer, log_poles, True)
    with torch.no_grad():
        arguments = dy, qkv, featurizer, log_poles, residues, feature_tail
        chosen = resolve("hyena_li_adjoint_state", backend, qkv, unsupported=unsupported)
        if chosen == "reference":
            return hyena_li_adjoint_state_reference(*arguments)
        return _adjoint_state(_channel_first(dy), _channel_first(qkv), *arguments[2:])
