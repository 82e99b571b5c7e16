"""The model: any split, causality, states, memory, precision."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evo_kernels import diagonal_ssm, discretise
from evo_toolkit.errors import UsageError
from evo_toolkit.model.attention import Attention
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.layers import LAYER_KINDS
from evo_toolkit.model.precision import PrecisionPolicy, resolve_precision
from evo_toolkit.model.rotary import rotary_frequencies
from evo_toolkit.model.state import AttentionState, ModelState, fork_state, gather_forks
from evo_toolkit.model.striped_hyena import StripedHyena2

# Each kind of layer alone, and all of them in one model.
EVERY_KIND = "".join(LAYER_KINDS)
PATTERNS = [*LAYER_KINDS, EVERY_KIND]
FLOAT64 = PrecisionPolicy(name="exact", compute_dtype=torch.float64)


def make(
    pattern: str = "SDH*", *, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: object
) -> StripedHyena2:
    values: dict[str, object] = {
        "name": "tiny", "pattern": pattern, "width": 32, "num_heads": 2, "mlp_width": 48,
        "filter_groups": 4, "context_length": 512, "vocab_size": 256, "rotary_interpolation": 4.0,
        # Short enough for products that are exactly causal: the FFT rounds by the whole chunk.
        "long_length": 96,
    }  # fmt: skip
    config = StripedHyena2Config(**{**values, **changes})  # type: ignore[arg-type]
    policy = PrecisionPolicy(name="exact", compute_dtype=dtype, full_float32=True)
    model = StripedHyena2(config, policy=policy, generator_seed=seed).to(dtype)
    with torch.no_grad():  # filters of every operator matter, unlike at initialisation
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.endswith("mixer.h"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


def ids(length: int, rows: int = 2, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


def in_chunks(model: StripedHyena2, tokens: Tensor, bounds: list[int]) -> tuple[Tensor, ModelState]:
    state, parts = None, []
    for start, stop in itertools.pairwise(bounds):
        logits, state = model(tokens[:, start:stop], state, return_state=True)
        parts.append(logits)
    assert state is not None
    return torch.cat(parts, dim=1), state


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=8, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 199), max_size=6, unique=True),
    length=st.integers(2, 200),
    grad=st.booleans(),
)
def test_any_split_equals_one_pass(pattern: str, cuts: list[int], length: int, grad: bool) -> None:
    model, tokens = make(pattern), ids(length)
    bounds = [0, *sorted(c for c in cuts if c < length), length]
    with torch.set_grad_enabled(grad):
        whole = model(tokens)
        split, _ = in_chunks(model, tokens, bounds)
    torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=4, deadline=None)
@given(
    cut=st.integers(1, 149),
    second=st.integers(1, 149),
)
def test_gradients_through_states_equal_those_of_one_pass(
    pattern: str, cut: int, second: int
) -> None:
    model, tokens = make(pattern), ids(150)
    weights = torch.randn(2, 150, 256, dtype=torch.float64)
    parameters = list(model.parameters())
    expected = torch.autograd.grad((model(tokens) * weights).sum(), parameters)
    split, _ = in_chunks(model, tokens, sorted({0, cut, second, 150}))
    found = torch.autograd.grad((split * weights).sum(), parameters)
    for mine, theirs in zip(found, expected, strict=True):
        scale = max(float(theirs.abs().max()), 1.0)
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9 * scale)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6])
def test_short_prompts_decode_like_the_full_forward(length: int) -> None:
    model, tokens = make(EVERY_KIND), ids(40)
    with torch.no_grad():
        whole = model(tokens)
        split, _ = in_chunks(model, tokens, [0, *range(length, 41)])
    torch.testing.assert_close(split, whole, rtol=1e-9, atol=1e-10)


def test_changing_a_token_changes_nothing_before_it() -> None:
    model, tokens = make(EVERY_KIND), ids(160)
    changed = tokens.clone()
    changed[:, 100] = (changed[:, 100] + 1) % 256
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :100], after[:, :100])
    assert not torch.allclose(before[:, 100], after[:, 100])
    assert not torch.allclose(before[:, 159], after[:, 159])


def test_forks_share_the_prefix_and_equal_the_full_forward() -> None:
    model, prefix = make(EVERY_KIND), ids(70, rows=1)
    suffixes = ids(30, rows=3, seed=1)
    with torch.no_grad():
        _, state = model(prefix, return_state=True)
        forked = fork_state(state, 3)
        first, forked = model(suffixes[:, :11], forked, return_state=True)
        second = model(suffixes[:, 11:], forked)
        whole = model(torch.cat([prefix.expand(3, -1), suffixes], dim=1))
    torch.testing.assert_close(torch.cat([first, second], 1), whole[:, 70:], rtol=1e-9, atol=1e-10)
    attention = forked[3]
    assert isinstance(attention, AttentionState) and attention.prefix_k is not None
    assert attention.prefix_k.shape[0] == 1
    with pytest.raises(ValueError, match="one sequence"):
        fork_state(forked, 2)


def test_continuations_of_several_prefixes_run_as_one_batch() -> None:
    """Rows of two states, of different lengths, one of them used twice."""
    model = make(EVERY_KIND)
    long, short, suffixes = ids(70, rows=2), ids(20, rows=3, seed=2), ids(30, rows=4, seed=1)
    with torch.no_grad():
        _, first = model(long, return_state=True)
        _, second = model(short[:, :9], return_state=True)
        _, second = model(short[:, 9:], second, return_state=True)  # now with spare capacity
        gathered = gather_forks([(first, 1), (second, 2), (first, 1), (second, 0)])
        begun, state = model(suffixes[:, :11], gathered, return_state=True)
        found = torch.cat([begun, model(suffixes[:, 11:], state)], dim=1)
        prefixes = [long[1], short[2], long[1], short[0]]
        for row, prefix in enumerate(prefixes):
            whole = model(torch.cat([prefix, suffixes[row]])[None])
            torch.testing.assert_close(found[row], whole[0, len(prefix) :], rtol=1e-9, atol=1e-10)
        attention = gathered[3]
        assert isinstance(attention, AttentionState) and isinstance(first[3], AttentionState)
        assert isinstance(attention.prefix_k, tuple)
        assert (
            attention.prefix_k[0].data_ptr() == attention.prefix_k[2].data_ptr()
        )  # nothing copied
    with pytest.raises(ValueError, match="not themselves forks"):
        gather_forks([(gathered, 0)])
    with pytest.raises(ValueError, match="at least one"):
        gather_forks([])


@pytest.mark.parametrize("length", [1, 40])
def test_fused_attention_of_forks_on_a_cpu_is_that_of_the_reference(length: int) -> None:
    policy = PrecisionPolicy(name="default", compute_dtype=torch.float32)
    plain = PrecisionPolicy(name="default", compute_dtype=torch.float32, backend="reference")
    config = make("*").config
    generator = torch.Generator().manual_seed(0)
    prefix = torch.randn(2, 33, 96, generator=generator)
    chunk = torch.randn(3, length, 96, generator=generator)
    found = []
    with torch.no_grad():
        for mixer in (Attention(config, policy), Attention(config, plain)):
            _, state = mixer(prefix, return_state=True)
            (gathered,) = gather_forks([((state,), 1), ((state,), 0), ((state,), 1)])
            found.append(mixer(chunk, gathered)[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_two_continuations_of_one_state_do_not_see_each_other() -> None:
    model, prefix = make("*"), ids(10, rows=1)
    a, b = ids(20, rows=1, seed=1), ids(20, rows=1, seed=2)
    with torch.no_grad():
        _, state = model(prefix, return_state=True)
        _, state = model(prefix[:, :1], state, return_state=True)  # now with spare capacity
        _, after_a = model(a[:, :5], state, return_state=True)
        _, _ = model(b[:, :5], state, return_state=True)
        found = model(a[:, 5:], after_a)
        whole = model(torch.cat([prefix, prefix[:, :1], a], dim=1))
    torch.testing.assert_close(found, whole[:, 16:], rtol=1e-9, atol=1e-10)


def test_states_own_their_memory() -> None:
    """A state of a few positions must not keep the whole chunk alive."""
    model = make(EVERY_KIND)
    with torch.no_grad():
        _, state = model(ids(400), return_state=True)
    fixed = [layer for layer in state if not isinstance(layer, AttentionState)]
    assert len(fixed) == len(LAYER_KINDS) - 1
    for layer in fixed:
        for x in layer:
            assert x.untyped_storage().nbytes() == x.numel() * x.element_size()


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("second", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_state_can_be_continued_under_any_grad_mode(
    first: type[torch.no_grad], second: type[torch.no_grad]
) -> None:
    model, tokens = make("S*"), ids(40)
    with first():
        _, state = model(tokens[:, :20], return_state=True)
        _, state = model(tokens[:, 20:21], state, return_state=True)
    if first is torch.inference_mode and second is torch.enable_grad:
        return  # torch itself forbids saving inference tensors for backward
    with second():
        part, state = model(tokens[:, 21:22], state, return_state=True)
        rest = model(tokens[:, 22:], state)
    with torch.no_grad():
        whole = model(tokens)
    torch.testing.assert_close(torch.cat([part, rest], 1).detach(), whole[:, 21:])


def test_a_zero_row_has_a_finite_gradient() -> None:
    norm = make().norm
    x = torch.zeros(1, 1, 32, dtype=torch.float64, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None and bool(x.grad.isfinite().all())


@pytest.mark.parametrize("setting", ["tf32", "ieee"])
def test_the_precision_setting_of_the_program_is_left_alone(setting: str) -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = setting
        with torch.no_grad():
            make()(ids(5))
        assert matmul.fp32_precision == setting
    finally:
        matmul.fp32_precision = before


def test_decoding_appends_in_place() -> None:
    model = make("*")
    with torch.no_grad():
        _, state = model(ids(10, rows=1), return_state=True)
        _, grown = model(ids(1, rows=1), state, return_state=True)
        _, again = model(ids(1, rows=1), grown, return_state=True)
    first, second = grown[0], again[0]
    assert isinstance(first, AttentionState) and isinstance(second, AttentionState)
    assert first.k.data_ptr() == second.k.data_ptr()
    assert (int(first.length), int(second.length)) == (11, 12)


def test_token_log_probs_are_those_of_the_logits_whatever_the_slices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, tokens = make(), ids(100)
    with torch.no_grad():
        expected = model(tokens)[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        monkeypatch.setattr("evo_toolkit.model.striped_hyena._HEAD_SLICE", 7)
        found = model.token_log_probs(tokens)
    assert bool(found[:, 0].isnan().all())
    torch.testing.assert_close(found[:, 1:], expected)
    one = model.token_log_probs(tokens[:, :1])
    assert one.shape == (2, 1) and bool(one.isnan().all())


def test_parameters_are_counted_and_seeded() -> None:
    for pattern in (*PATTERNS, "SDH*SDH"):
        for tied in (True, False):
            model = make(pattern, tie_embeddings=tied)
            assert sum(p.numel() for p in model.parameters()) == model.config.parameter_count()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = make(seed=3), make(seed=3)
    assert torch.equal(torch.rand(1), expected)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert not torch.equal(first.embedding.weight, make(seed=4).embedding.weight)


def test_initial_weights_follow_the_rules() -> None:
    model = StripedHyena2(
        make("SDH*", width=256, num_heads=8, mlp_width=256).config, generator_seed=0
    )
    small, output = (2 / (5 * 256)) ** 0.5, 2 / (4 * 256**0.5)
    block = model.blocks[2]
    assert float(block.projections.weight.detach().std()) == pytest.approx(small, rel=0.02)
    assert float(block.mlp.l3.weight.detach().std()) == pytest.approx(output, rel=0.02)
    assert float(block.out_projection.weight.detach().std()) == pytest.approx(output, rel=0.02)
    assert torch.equal(block.mixer.D, torch.ones(256))
    rates = -block.mixer.log_poles / torch.exp(torch.tensor(-1.0))
    assert float(rates.detach().min()) >= 0.01 and float(rates.detach().max()) <= 0.1
    assert float(model.blocks[0].mixer.h.detach().abs().max()) <= 3**-0.5


def test_rotary_frequencies_have_the_check_sums_of_the_released_buffers() -> None:
    # Sums and leading values read from the released 7B and 40B checkpoints.
    for base, total, leading in (
        (1e4, 7.46028709, [1, 0.8671875, 0.75, 0.6484375, 0.5625, 0.486328125]),
        (1e6, 5.14882565, [1, 0.8046875, 0.6484375, 0.5234375, 0.421875, 0.33984375]),
    ):
        frequencies = rotary_frequencies(128, base, through_bf16=True)
        assert float(frequencies.sum()) == pytest.approx(total, abs=1e-6)
        assert frequencies[:6].tolist() == leading


def test_precision_policies() -> None:
    cpu = torch.device("cpu")
    exact = resolve_precision("exact", cpu)
    assert (
        exact.compute_dtype == torch.float32 and exact.full_float32 and exact.backend == "reference"
    )
    vortex = resolve_precision("vortex", cpu)
    assert vortex.compute_dtype == torch.bfloat16 and vortex.rounding == torch.bfloat16
    with pytest.raises(UsageError, match="use one of default, exact, vortex"):
        resolve_precision("double", cpu)


def test_rounding_points_of_released_models_exist_for_their_layers_alone() -> None:
    vortex = resolve_precision("vortex", torch.device("cpu"))
    with pytest.raises(UsageError, match=r"no 3 \(H3\), 4 \(S4D\) layers; use .default."):
        StripedHyena2(make("S4*3").config, policy=vortex)


def test_diagonal_models_start_as_s4d_lin() -> None:
    config = make("3", width=256, num_heads=8).config
    mixer = StripedHyena2(config, generator_seed=0).blocks[0].mixer
    assert torch.equal(mixer.log_rates.detach().exp(), torch.full((256, 32), 0.5))
    torch.testing.assert_close(mixer.frequencies[7].detach(), torch.pi * torch.arange(32.0))
    steps = mixer.log_step.detach().exp()
    assert float(steps.min()) >= 1e-3 and float(steps.max()) <= 0.1
    assert float(steps.median()) == pytest.approx(1e-2, rel=0.5)  # of the logarithm, uniform
    assert float(mixer.C.detach().square().sum(-1).mean()) == pytest.approx(1, rel=0.05)
    assert mixer.discretisation == "bilinear"
    assert torch.equal(mixer.shift_B.detach()[5], torch.eye(64)[0])
    assert float(mixer.shift_C.detach().square().sum(1).mean()) == pytest.approx(1, rel=0.05)
    heads = StripedHyena2(config.replace(h3_head_width=8), generator_seed=0).blocks[0].mixer
    assert heads.D.shape == (32,) and heads.shift_C.shape == (256, 64)


@pytest.mark.parametrize("pattern", ["3", "4", "H"])
@pytest.mark.parametrize("options", [{}, {"h3_head_width": 4}, {"h3_shift_length": 7, "ssm_order": 5}])  # fmt: skip
def test_bits_do_not_depend_on_batch_mates(pattern: str, options: dict[str, int]) -> None:
    model = make(pattern, dtype=torch.float32, **options)
    for rows, length in itertools.product((2, 3, 16), (7, 65, 94)):
        tokens = ids(length, rows=rows)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(rows))
        other = tokens.clone()
        other[1:] = 70
        with torch.no_grad():
            logits = model(tokens)
            assert torch.equal(model(tokens[order]), logits[order]), (rows, length)
            assert torch.equal(model(other)[0], logits[0]), (rows, length)


@pytest.mark.parametrize("pattern", ["3", "4"])
@pytest.mark.parametrize("method", ["bilinear", "zoh"])
def test_the_state_space_model_is_sampled_as_the_configuration_says(
    pattern: str, method: Literal["bilinear", "zoh"]
) -> None:
    mixer = make(pattern, ssm_discretisation=method).blocks[0].mixer
    parameters = (mixer.log_rates, mixer.frequencies, mixer.C, mixer.log_step)
    expected = {name: discretise(*parameters, name) for name in ("bilinear", "zoh")}
    for mine, theirs in zip(mixer.modes(), expected.pop(method), strict=True):
        assert torch.equal(mine, theirs)
    (other,) = expected.values()
    assert not torch.equal(mixer.modes().log_poles, other.log_poles)


def test_s4d_is_a_gelu_of_its_diagonal_model() -> None:
    mixer = make("4", width=4, num_heads=2, filter_groups=1).blocks[0].mixer
    u = torch.randn(1, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, _ = diagonal_ssm(u, mixer.modes(), mixer.D)
    expected = y * (1 + torch.erf(y * 0.5**0.5)) / 2
    torch.testing.assert_close(mixer(u)[0], expected, rtol=1e-12, atol=1e-12)


def test_operators_see_float32_filters_and_bf16_inputs() -> None:
    policy = PrecisionPolicy(name="default", compute_dtype=torch.bfloat16)
    model = StripedHyena2(make(EVERY_KIND).config, policy=policy, generator_seed=0)
    seen: dict[str, list[torch.dtype]] = {}
    for name, block in zip(EVERY_KIND, model.blocks, strict=True):

        def keep(module: torch.nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            seen[name] = [inputs[0].dtype, *(p.dtype for p in module.parameters())]

        block.mixer.register_forward_pre_hook(keep)
    logits = model(ids(20))
    assert logits.dtype == torch.float32
    for name, (first, *rest) in seen.items():
        assert first == torch.bfloat16, name
        assert set(rest) <= {torch.float32}, name


def test_bad_inputs_are_refused() -> None:
    model = make()
    with pytest.raises(ValueError, match="at least one position"):
        model(torch.zeros(1, 0, dtype=torch.int64))
    _, state = model(ids(3), return_state=True)
    with pytest.raises(ValueError, match="state has 3 layers, the model 4"):
        model(ids(3), state[:3])


_MEMORY = """
import re, torch
from pathlib import Path
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.striped_hyena import StripedHyena2
torch.set_num_threads(2)
config = StripedHyena2Config(name="m", pattern="SDH*SDH*H", width=128, num_heads=4, mlp_width=352,
                             filter_groups=8, context_length=8192)
assert 1_800_000 < config.parameter_count() <= 2_000_000
model = StripedHyena2(config, generator_seed=0)
with torch.inference_mode():
    found = model.token_log_probs(torch.randint(65, 85, (1, {length})))
assert bool(found[0, 1:].isfinite().all())
# Not the peak that getrusage tells: that one a process inherits from whoever started it.
status = Path("/proc/self/status").read_text()
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024)
"""


def _peak_mib(length: int) -> float:
    """Peak memory of a whole process, interpreter and torch included."""
    code = _MEMORY.format(length=length)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def test_16k_bases_of_a_2m_model_take_less_than_a_gibibyte() -> None:
    assert _peak_mib(16_384) < 1024


@pytest.mark.slow
def test_memory_grows_linearly_to_131k_bases() -> None:
    """At most in proportion: anything quadratic would take 64 times more for 8 times the bases."""
    nothing, small, large = _peak_mib(64), _peak_mib(16_384), _peak_mib(131_072)
    assert large - nothing < 1.25 * (131_072 / 16_384) * (small - nothing)
    assert large < 2048
