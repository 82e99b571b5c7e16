"""The operators around Hyena and attention against their float64 twins, on a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evo_kernels.attention_forked import attention_forked
from evo_kernels.attention_two_segment import attention_two_segment
from evo_kernels.gated_product import gated_product
from evo_kernels.rms_norm import add_rms_norm, rms_norm
from evo_kernels.rotary import rotary
from evo_kernels.testing import INPUT_GRADIENT_BOUND, OUTPUT_BOUND
from evo_kernels.token_log_probs import token_log_probs
from evo_toolkit.model.attention import _causal, _causal_fused
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.precision import resolve_precision
from evo_toolkit.model.projection import Projection
from evo_toolkit.model.state import fork_state
from evo_toolkit.model.striped_hyena import StripedHyena2

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="bfloat16 needs a GPU"
)

DTYPES = (torch.bfloat16, torch.float16)
# Attention rounds its weights for their product and, in two segments, each result before the merge.
ATTENTION_BOUND = 2.0


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, generator=generator, device="cuda").to(dtype)


def _within(found: Tensor, exact: Tensor, bound: float) -> None:
    """The error is at most `bound` times that of rounding the exact result."""
    found, exact = found.detach(), exact.detach()
    error = (found.double() - exact).norm()
    assert float(error) <= bound * float((exact.to(found.dtype).double() - exact).norm()) + 1e-12


def _compare(function: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...]) -> None:
    """Outputs and gradients of the kernel against the twin in float64."""
    found_inputs = [x.detach().requires_grad_() for x in inputs]
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    found = function(*found_inputs, "triton")
    exact = function(*exact_inputs, "reference")
    weights = [_randn(*y.shape, seed=9 + i, dtype=y.dtype) for i, y in enumerate(found)]
    gradients = torch.autograd.grad(found, found_inputs, weights)
    exact_gradients = torch.autograd.grad(exact, exact_inputs, [w.double() for w in weights])
    for y, wanted in zip(found, exact, strict=True):
        _within(y, wanted, OUTPUT_BOUND)
    for g, wanted in zip(gradients, exact_gradients, strict=True):
        if g.dtype == torch.float32:
            assert float((g - wanted).norm() / wanted.norm()) < 1e-5
        else:
            _within(g, wanted, INPUT_GRADIENT_BOUND)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 4096), (3, 37, 1920), (2, 700, 8192), (2, 5, 30)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, scale = _randn(*shape, dtype=dtype), 1 + 0.1 * _randn(shape[-1], seed=1).float()
    _compare(lambda x, s, backend: (rms_norm(x, s, 1e-6, backend=backend),), (x, scale))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 4096), (3, 37, 1920)])
def test_add_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    # Small whole numbers, whose sums need no rounding, so that float64 normalises the same rows.
    x, added = (torch.randint(-8, 9, shape, device="cuda").to(dtype) for _ in "ab")
    scale = 1 + 0.1 * _randn(shape[-1], seed=1).float()
    _compare(
        lambda x, a, s, backend: add_rms_norm(x, a, s, 1e-6, backend=backend),
        (x, added, scale),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gelu", [False, True])
def test_gated_product(gelu: bool, dtype: torch.dtype) -> None:
    inputs = (_randn(3, 37, 11008, dtype=dtype), _randn(3, 37, 11008, dtype=dtype, seed=1))
    _compare(lambda g, v, backend: (gated_product(g, v, gelu=gelu, backend=backend),), inputs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_of_blocks(dtype: torch.dtype) -> None:
    L, H, E = 129, 32, 128
    angles = torch.arange(L, device="cuda")[:, None] * torch.rand(E // 2, device="cuda")

    def turn(qkv: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        q, k, _ = (x.reshape(2, L, H, E) for x in qkv.chunk(3, dim=-1))
        cos, sin = (
            f().to(torch.promote_types(q.dtype, torch.float32)) for f in (angles.cos, angles.sin)
        )
        return rotary(q, k, cos, sin, backend=backend)  # type: ignore[arg-type]

    _compare(turn, (_randn(2, L, 3 * H * E, dtype=dtype),))


@pytest.mark.parametrize("outlier", [1.0, 300.0])
@pytest.mark.parametrize("rows, width", [(1100, 4096), (9000, 1920), (4096, 8192)])
def test_log_probs_are_nearer_than_float32_products(rows: int, width: int, outlier: float) -> None:
    hidden = _randn(rows, width)
    hidden[:, 7] *= outlier
    scale, weight = 1 + 0.1 * _randn(width, seed=1).float(), 0.02 * _randn(512, width, seed=2)
    targets = torch.arange(rows, device="cuda") % 512
    arguments = (scale, 1e-6, weight, targets)
    exact = token_log_probs(hidden.double(), *arguments, backend="reference")
    found = token_log_probs(hidden, *arguments, backend="triton")
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"
    plain = token_log_probs(hidden.float(), *arguments, backend="reference")
    error, plain_error = ((y - exact).square().mean().sqrt() for y in (found, plain))
    # 3e-7: the last bit of a log-probability of about 6.
    assert float(error) <= max(float(plain_error), 3e-7)


@pytest.mark.parametrize(
    "rows, length, prefix, own, heads, width",
    [(3, 1, 5, 1, 4, 128), (2, 37, 300, 64, 4, 64), (5, 129, 1000, 129, 8, 128), (1, 7, 3, 9, 3, 24),
     (2, 8200, 8300, 8200, 1, 64)],
)  # fmt: skip
def test_two_segment_attention(
    rows: int, length: int, prefix: int, own: int, heads: int, width: int
) -> None:
    q, k, v = (_randn(rows, n, heads, width, seed=n) for n in (length, own, own + 1))
    v = v[:, :own]
    pk, pv = (_randn(1, prefix, heads, width, seed=3 + i) for i in (0, 1))
    tensors = (q, pk, pv, k, v)
    exact = attention_two_segment(*(x.double() for x in tensors), backend="reference")
    _within(attention_two_segment(*tensors, backend="triton"), exact, ATTENTION_BOUND)


@pytest.mark.parametrize(
    "length, own, prefixes, heads, width",
    [(1, 1, (1, 5, 4096), 2, 128), (32, 32, (4096, 4128), 2, 128), (37, 64, (300, 63), 4, 64),
     (129, 129, (1000, 64, 65), 3, 24), (300, 300, (700, 1), 2, 256), (4096, 4096, (4096, 4320), 2, 128)],
)  # fmt: skip
def test_attention_over_forked_prefixes(
    length: int, own: int, prefixes: tuple[int, ...], heads: int, width: int
) -> None:
    rows = len(prefixes)
    q, k, v = (_randn(rows, own, heads, width, seed=i) for i in range(3))
    q = q[:, own - length :]
    buffers = [_randn(rows, max(prefixes) + 8, heads, width, seed=3 + i) for i in (0, 1)]
    keys, values = ([x[i : i + 1, :n] for i, n in enumerate(prefixes)] for x in buffers)
    exact = attention_forked(
        q.double(), [x.double() for x in keys], [x.double() for x in values], k.double(),
        v.double(), backend="reference",
    )  # fmt: skip
    found = attention_forked(q, keys, values, k, v, backend="triton")
    _within(found, exact, ATTENTION_BOUND)
    common = min(prefixes)
    of_all = attention_forked(q, keys, values, k, v, backend="triton", common=common)
    _within(of_all, exact, ATTENTION_BOUND)
    order = [*range(1, rows), 0]
    turned = attention_forked(
        q[order], [keys[i] for i in order], [values[i] for i in order], k[order], v[order],
        backend="triton", common=common,
    )  # fmt: skip
    assert torch.equal(turned, of_all[order])
    alone = attention_forked(q[1:2], keys[1:2], values[1:2], k[1:2], v[1:2], backend="triton")
    _within(alone, exact[1:2], ATTENTION_BOUND)


def test_two_segment_attention_holds_no_scores() -> None:
    A, L, P, H, E = 4, 256, 65_536, 32, 128
    q, k, v = (_randn(A, L, H, E, seed=i) for i in range(3))
    pk, pv = (_randn(1, P, H, E, seed=3 + i) for i in (0, 1))
    attention_two_segment(q, pk, pv, k, v, backend="triton")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attention_two_segment(q, pk, pv, k, v, backend="triton")
    used = torch.cuda.max_memory_allocated() - before
    assert used < 8 * q.numel() * q.element_size()


@pytest.mark.parametrize(
    "length, before", [(1, 0), (129, 0), (2100, 0), (1, 77), (37, 200), (16384, 8200)]
)
@pytest.mark.parametrize("rows", [1, 2])
def test_causal_attention(rows: int, length: int, before: int) -> None:
    heads, width = (1, 64) if length > 4000 else (4, 64)
    q = _randn(rows, length, heads, width)
    k, v = (_randn(rows, before + length, heads, width, seed=1 + i) for i in (0, 1))
    with torch.inference_mode():
        found = _causal_fused(q, k, v)
        exact = _causal(q.double(), k.double(), v.double())
    _within(found, exact, ATTENTION_BOUND)


@pytest.mark.parametrize("rows, length", [(1, 64), (1, 131), (3, 64), (3, 131)])
def test_projections_in_either_layout(rows: int, length: int) -> None:
    into, out = Projection(128, 384, bias=False), Projection(128, 128)
    into.channel_first = out.takes_channel_first = True
    into, out = (p.to("cuda", torch.bfloat16) for p in (into, out))
    x = _randn(rows, length, 128)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            y = into(x)
            assert y.stride(1) == 1 and y.stride(2) % 8 == 0
            _within(y, F.linear(x.double(), into.weight.double()), OUTPUT_BOUND)
            mixed = y[..., :128]
            exact = F.linear(mixed.double(), out.weight.double(), out.bias.double())
            _within(out(mixed), exact, OUTPUT_BOUND)
    loss = out(into(x)[..., :128]).float().square().sum()
    wanted = F.linear(F.linear(x, into.weight)[..., :128], out.weight, out.bias)
    parameters = (into.weight, out.weight, out.bias)
    for g, w in zip(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(wanted.float().square().sum(), parameters),
        strict=True,
    ):
        assert float((g - w).float().norm() / w.float().norm()) < 1e-2


def test_garbage_in_spare_positions_changes_nothing() -> None:
    out = Projection(128, 128).to("cuda", torch.bfloat16)
    out.takes_channel_first = True
    storage = _randn(2, 128, 136)
    x = storage[:, :, :131].transpose(1, 2)
    with torch.no_grad():
        wanted = out(x).clone()
        storage[:, :, 131:] = float("nan")
        assert torch.equal(out(x), wanted)


def test_rows_are_bitwise_independent_of_their_mates() -> None:
    x, added, scale = _randn(4, 300, 4096), _randn(4, 300, 4096, seed=1), _randn(4096, seed=2)
    other = x.clone()
    other[:2] = 7
    for a, b in zip(
        add_rms_norm(x, added, scale, 1e-6), add_rms_norm(other, added, scale, 1e-6), strict=True
    ):
        assert torch.equal(a[2:], b[2:])
    weight, targets = (
        0.02 * _randn(512, 4096, seed=3),
        torch.zeros(1200, dtype=torch.int64, device="cuda"),
    )
    one, two = (
        token_log_probs(y.flatten(0, 1), scale, 1e-6, weight, targets, backend="triton")
        for y in (x, other)
    )
    assert torch.equal(one.view(4, 300)[2:], two.view(4, 300)[2:])


def _model() -> StripedHyena2:
    config = StripedHyena2Config(
        name="tiny", pattern="SDH*", width=256, num_heads=4, mlp_width=384, filter_groups=16,
        context_length=512,
    )  # fmt: skip
    policy = resolve_precision("default", torch.device("cuda"))
    model = StripedHyena2(config, policy=policy, generator_seed=0)
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to("cuda", model.storage_dtype(name))
    return model.eval()


@torch.no_grad()
def test_hooks_change_nothing_and_see_the_product_alone() -> None:
    model = _model()
    ids = torch.randint(65, 85, (2, 130), device="cuda")
    wanted = model.token_log_probs(ids)[:, 1:]
    seen: dict[str, Tensor] = {}
    names = ("out_projection", "post_norm", "mlp.l3", "projections")
    for block in model.blocks:
        for name in names:
            block.get_submodule(name).register_forward_hook(
                lambda m, i, o, name=name: seen.update({name: o, f"{name} in": i[0]})  # type: ignore[misc]
            )
    found = model.token_log_probs(ids)[:, 1:]
    y, _ = model.hidden(ids)
    torch.testing.assert_close(seen["post_norm in"] + seen["mlp.l3"], y)
    assert float((found - wanted).abs().max()) < 0.05


@torch.no_grad()
@pytest.mark.parametrize("length", [300, 4096])
def test_scores_do_not_depend_on_batch_mates(length: int) -> None:
    model = _model()
    ids = torch.randint(65, 85, (4, length), device="cuda")
    other = ids.clone()
    other[:3] = ord("N")
    a, b = (model.token_log_probs(x)[3, 1:] for x in (ids, other))
    assert torch.equal(a, b)


@torch.no_grad()
def test_forks_continue_like_one_pass() -> None:
    model = _model()
    ids = torch.randint(65, 85, (3, 130), device="cuda")
    ids[:, :70] = ids[0, :70]
    whole = model.hidden(ids)[0][:, 70:]
    _, state = model.hidden(ids[:1, :70], return_state=True)
    assert state is not None
    split, state = model.hidden(ids[:, 70:100], fork_state(state, 3), return_state=True)
    rest, _ = model.hidden(ids[:, 100:], state, return_state=True)
    found = torch.cat([split, rest], dim=1)
    assert float((found - whole).float().norm() / whole.float().norm()) < 0.02


@pytest.mark.parametrize("index", [2, 3])
def test_blocks_compile_whole_and_train(index: int) -> None:
    block = _model().blocks[index]
    x = _randn(2, 136, 256).requires_grad_()
    results = []
    for call in (block, torch.compile(block, fullgraph=True)):
        y, _ = call(x)
        gradients = torch.autograd.grad(y.float().square().mean(), [x, *block.parameters()])
        results.append((y, *gradients))
    for eager, compiled in zip(*results, strict=True):
        assert float((eager - compiled).float().norm() / eager.float().norm()) < 0.03


def test_a_score_does_not_depend_on_its_place() -> None:
    """The same row first, in the middle and last of more rows than one slice of the head holds."""
    rows, width = 65532, 512
    hidden = _randn(rows, width)
    places = [0, 30000, 57343, 57344, rows - 1]
    hidden[places] = hidden[0].clone()
    scale, weight = 1 + 0.1 * _randn(width, seed=1).float(), 0.02 * _randn(512, width, seed=2)
    targets = torch.full((rows,), 65, device="cuda")
    found = token_log_probs(hidden, scale, 1e-6, weight, targets, backend="triton")
    assert bool((found[places] == found[0]).all())
