"""Kernels around the Hyena operators (norm, gate, rotary, head) in the interpreter, against their twins.

Run with `TRITON_INTERPRET=1`. The interpreter truncates when it rounds to bfloat16, so float32 and
float16 are compared here.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evo_kernels.attention_forked import attention_forked, prefix_table
from evo_kernels.attention_two_segment import attention_two_segment
from evo_kernels.backend import interpreting
from evo_kernels.errors import KernelError
from evo_kernels.gated_product import gated_product
from evo_kernels.rms_norm import add_rms_norm, rms_norm
from evo_kernels.rotary import rotary
from evo_kernels.token_log_probs import token_log_probs

pytestmark = pytest.mark.skipif(not interpreting(), reason="needs TRITON_INTERPRET=1")

# float32: other order of summation. float16: one rounding that falls the other way.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1.5e-3}
DTYPES = tuple(TOLERANCE)


def _normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype
    largest = want.abs().max().clamp(min=1e-30)
    assert (got - want).abs().max() / largest < TOLERANCE[dtype]


def _gradients(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weights = [_normal(*y.shape, dtype=y.dtype, seed=7 + i) for i, y in enumerate(outputs)]
    return torch.autograd.grad(outputs, inputs, weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 32), (2, 7, 30), (3, 1, 100)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    results = []
    for backend in ("triton", "reference"):
        x = _normal(*shape, dtype=dtype).requires_grad_()
        scale = (1 + 0.1 * _normal(shape[-1], seed=1)).requires_grad_()
        y = rms_norm(x, scale, 1e-6, backend=backend)
        results.append((y.detach(), *_gradients((y,), (x, scale))))
    for got, want in zip(*results, strict=True):
        _close(got, want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 32), (2, 7, 30)])
def test_add_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    results = []
    for backend in ("triton", "reference"):
        x = _normal(*shape, dtype=dtype).requires_grad_()
        added = _normal(*shape, dtype=dtype, seed=2).requires_grad_()
        scale = (1 + 0.1 * _normal(shape[-1], seed=1)).requires_grad_()
        total, y = add_rms_norm(x, added, scale, 1e-6, backend=backend)
        gradients = _gradients((total, y), (x, added, scale))
        results.append((total.detach(), y.detach(), *gradients))
    for got, want in zip(*results, strict=True):
        _close(got, want, dtype)


def test_rms_norm_of_zeros_is_zero_with_a_finite_gradient() -> None:
    x, scale = torch.zeros(2, 3, 32, requires_grad=True), torch.ones(32, requires_grad=True)
    y = rms_norm(x, scale, 1e-6, backend="triton")
    assert not y.any()
    gradients = _gradients((y,), (x, scale))
    want = _gradients((rms_norm(x, scale, 1e-6, backend="reference"),), (x, scale))
    for got, expected in zip(gradients, want, strict=True):
        assert torch.isfinite(got).all()
        _close(got, expected, torch.float32)


def test_rms_norm_of_a_strided_view() -> None:
    x, scale = _normal(2, 32, 5).transpose(1, 2), torch.ones(32)
    _close(rms_norm(x, scale, 1e-6, backend="triton"), rms_norm(x, scale, 1e-6), torch.float32)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 7, 300)])
def test_gated_product(shape: tuple[int, ...], dtype: torch.dtype, gelu: bool) -> None:
    results = []
    for backend in ("triton", "reference"):
        gate = _normal(*shape, dtype=dtype).requires_grad_()
        value = _normal(*shape, dtype=dtype, seed=1).requires_grad_()
        y = gated_product(gate, value, gelu=gelu, backend=backend)
        results.append((y.detach(), *_gradients((y,), (gate, value))))
    for got, want in zip(*results, strict=True):
        _close(got, want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, width", [(1, 2), (3, 10), (4, 16)])
def test_rotary_on_blocks_of_one_tensor(heads: int, width: int, dtype: torch.dtype) -> None:
    L = 5
    angles = torch.arange(11, 11 + L)[:, None] * torch.rand(width // 2)
    results = []
    for backend in ("triton", "reference"):
        qkv = _normal(2, L, 3 * heads * width, dtype=dtype).requires_grad_()
        q, k, _ = (x.reshape(2, L, heads, width) for x in qkv.chunk(3, dim=-1))
        q, k = rotary(q, k, angles.cos(), angles.sin(), backend=backend)
        results.append((q.detach(), k.detach(), *_gradients((q, k), (qkv,))))
    for got, want in zip(*results, strict=True):
        _close(got, want, dtype)


@pytest.mark.parametrize("rows, width, vocabulary", [(1, 32, 8), (7, 40, 20), (2, 1040, 12)])
def test_token_log_probs(rows: int, width: int, vocabulary: int) -> None:
    hidden = _normal(rows, width).to(torch.bfloat16)
    scale = 1 + 0.1 * _normal(width, seed=1)
    weight = _normal(vocabulary, width, seed=2)
    targets = torch.arange(rows) % vocabulary
    got = token_log_probs(hidden, scale, 1e-6, weight, targets, backend="triton")
    want = token_log_probs(
        hidden.double(), scale.double(), 1e-6, weight.double(), targets, backend="reference"
    )
    assert got.dtype == torch.float32
    assert (got - want).abs().max() < 2e-4  # float32 sums of logits of up to 100


@pytest.mark.parametrize(
    "rows, length, prefix, own, heads, width", [(3, 1, 5, 1, 3, 10), (2, 5, 9, 8, 2, 8)]
)
def test_two_segment_attention(
    rows: int, length: int, prefix: int, own: int, heads: int, width: int
) -> None:
    q, k, v = (_normal(rows, n, heads, width, seed=i) for i, n in enumerate((length, own, own)))
    pk, pv = (_normal(1, prefix, heads, width, seed=3 + i) for i in (0, 1))
    found = attention_two_segment(q, pk, pv, k, v, backend="triton")
    wanted = attention_two_segment(q, pk, pv, k, v, backend="reference")
    _close(found, wanted, torch.float32)


@pytest.mark.parametrize(
    "length, own, prefixes, heads, width",
    [(1, 1, (1, 5), 2, 16), (5, 9, (3, 64, 65), 1, 8), (70, 70, (130, 64, 1), 2, 24),
     (140, 143, (200, 7), 1, 16)],
)  # fmt: skip
def test_attention_over_forked_prefixes(
    length: int, own: int, prefixes: tuple[int, ...], heads: int, width: int
) -> None:
    rows = len(prefixes)
    qkv = _normal(rows, own, 3 * heads * width)
    q, k, v = (x.reshape(rows, own, heads, width) for x in qkv.chunk(3, dim=-1))
    q = q[:, own - length :]
    # Rows of a larger buffer, as states hold them.
    buffers = [_normal(rows, max(prefixes) + 3, heads, width, seed=1 + i) for i in (0, 1)]
    keys, values = ([x[i : i + 1, :n] for i, n in enumerate(prefixes)] for x in buffers)
    found = attention_forked(q, keys, values, k, v, backend="triton")
    wanted = attention_forked(
        *(x.double() for x in (q,)), [x.double() for x in keys], [x.double() for x in values],
        k.double(), v.double(), backend="reference",
    )  # fmt: skip
    _close(found, wanted.float(), torch.float32)
    of_all = attention_forked(
        q,
        keys,
        values,
        k,
        v,
        backend="triton",
        common=min(prefixes),
        table=prefix_table(keys, values),
    )
    _close(of_all, wanted.float(), torch.float32)
    alone = attention_forked(
        q[1:2], keys[1:2], values[1:2], k[1:2], v[1:2], backend="triton",
        table=prefix_table(keys[1:2], values[1:2]),
    )  # fmt: skip
    assert torch.equal(alone[0], found[1])


def test_rotary_of_rows_that_begin_at_places_of_their_own() -> None:
    q, k = (_normal(3, 5, 2, 8, seed=i) for i in (0, 1))
    positions = torch.tensor([0, 7, 100])[:, None] + torch.arange(5)
    angles = positions[..., None] * torch.rand(4)
    for backend in ("triton", "reference"):
        found = rotary(q, k, angles.cos(), angles.sin(), backend=backend)
        rows = [
            rotary(
                q[i : i + 1], k[i : i + 1], angles[i].cos(), angles[i].sin(), backend="reference"
            )
            for i in range(3)
        ]
        for got, want in zip(found, zip(*rows, strict=True), strict=True):
            _close(got, torch.cat(want), torch.float32)


def test_pieces_of_a_row_are_equal_and_short() -> None:
    from evo_kernels.token_log_probs.forward import pieces_of

    assert [pieces_of(width) for width in (8, 128, 1920, 4096, 8192, 1040)] == [
        1,
        1,
        15,
        32,
        64,
        10,
    ]


def test_a_target_outside_the_vocabulary_is_nan() -> None:
    hidden, weight = _normal(2, 32).to(torch.bfloat16), _normal(8, 32)
    out = token_log_probs(
        hidden, torch.ones(32), 1e-6, weight, torch.tensor([8, 7]), backend="triton"
    )
    assert out.isnan().tolist() == [True, False]


def test_rows_do_not_see_each_other() -> None:
    x, added, scale = _normal(4, 3, 32), _normal(4, 3, 32, seed=1), torch.ones(32)
    whole = add_rms_norm(x, added, scale, 1e-6, backend="triton")
    alone = add_rms_norm(x[2:3], added[2:3], scale, 1e-6, backend="triton")
    for a, b in zip(whole, alone, strict=True):
        assert torch.equal(a[2:3], b)


def test_backward_is_bitwise_repeatable() -> None:
    first, second = (
        _gradients((rms_norm(x, scale, 1e-6, backend="triton"),), (x, scale))
        for x, scale in [
            (_normal(3, 5, 32).requires_grad_(), torch.ones(32, requires_grad=True))
            for _ in range(2)
        ]
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_operators_pass_opcheck() -> None:
    x, scale = _normal(2, 3, 16).requires_grad_(), torch.ones(16, requires_grad=True)
    cos = torch.ones(3, 4)
    q = _normal(2, 3, 2, 8).requires_grad_()
    hidden, targets = _normal(3, 16).to(torch.bfloat16), torch.zeros(3, dtype=torch.int64)
    ops = torch.ops.evo_kernels
    for op, arguments in (
        (ops.rms_norm, (x, scale, 1e-6)),
        (ops.add_rms_norm, (x, x.detach().clone(), scale, 1e-6)),
        (ops.gated_product, (x, x.detach().clone(), True)),
        (ops.rotary, (q, q.detach().clone(), cos, cos, False)),
        (ops.token_log_probs, (hidden, torch.ones(16), 1e-6, _normal(8, 16), targets)),
    ):
        torch.library.opcheck(op, arguments)


def test_disagreeing_arguments_are_named() -> None:
    x = torch.ones(1, 2, 16)
    with pytest.raises(KernelError, match="scale has shape"):
        rms_norm(x, torch.ones(8), 1e-6)
    with pytest.raises(KernelError, match="added is"):
        add_rms_norm(x, x.half(), torch.ones(16), 1e-6)
    with pytest.raises(KernelError, match="value has shape"):
        gated_product(x, x[..., :8], gelu=False)
    with pytest.raises(KernelError, match="cos has shape"):
        rotary(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4), torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(KernelError, match="hidden has shape"):
        token_log_probs(x, torch.ones(16), 1e-6, torch.ones(8, 16), torch.zeros(2))
