"""Long convolutions as a mixer: regularisation, states, files, training, and what they refuse."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evo_data.tokenizer import ByteTokenizer
from evo_kernels.butterfly import learned_block_sizes
from evo_kernels.long_conv import learned_transform_size, smooth, smooth_spectrum, squash
from evo_toolkit import embed, generate, load_model, log_likelihood
from evo_toolkit.checkpoint.format import save_pretrained
from evo_toolkit.checkpoint.names import tensor_shapes
from evo_toolkit.errors import ConfigError, UsageError
from evo_toolkit.model.block import Block
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.long_convolution import LongConvolution
from evo_toolkit.model.precision import PrecisionPolicy
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.training.flops import forward_flops
from evo_toolkit.training.loss import NextTokenObjective
from evo_toolkit.training.optim import OptimizerConfig, build_optimizer, parameter_groups
from evo_toolkit.variants.positions import PositionModel

LOOKS_AHEAD = [
    {"long_bidirectional": True},
    {"long_butterfly": "free"},
    {"long_butterfly": "additive", "long_butterfly_heads": 2, "long_bidirectional": True},
]


def config(**changes: object) -> StripedHyena2Config:
    values: dict[str, object] = {
        "name": "toy", "pattern": "LS*", "width": 16, "num_heads": 2, "mlp_width": 24,
        "filter_groups": 4, "context_length": 200, "vocab_size": 256, "long_length": 200,
    }  # fmt: skip
    return StripedHyena2Config(**{**values, **changes})  # type: ignore[arg-type]


def make(dtype: torch.dtype = torch.float64, **changes: object) -> StripedHyena2:
    policy = PrecisionPolicy(name="exact", compute_dtype=dtype, full_float32=True)
    model = StripedHyena2(config(**changes), policy=policy, generator_seed=0)
    return model.to(dtype)


def mixer_of(model: StripedHyena2) -> LongConvolution:
    block = model.blocks[0]
    assert isinstance(block, Block) and isinstance(block.mixer, LongConvolution)
    return block.mixer


def ids(length: int, rows: int = 2) -> Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("algorithm", ["auto", "toeplitz", "fft", "butterfly"])
def test_any_split_equals_one_pass_beyond_the_filter(algorithm: Any) -> None:
    model, tokens = make(), ids(330)
    mixer = mixer_of(model)
    with torch.no_grad():
        mixer.h.mul_(20)
        expected = model(tokens)
        mixer.algorithm, mixer.order = algorithm, 3
        torch.testing.assert_close(model(tokens), expected, rtol=1e-9, atol=1e-10)
        state, parts = None, []
        for start, stop in itertools.pairwise([0, 1, 2, 140, 150, 151, 329, 330]):
            logits, state = model(tokens[:, start:stop], state, return_state=True)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-9, atol=1e-10)
    assert state is not None
    assert state[0].gated.shape == (2, 199, 16)  # type: ignore[union-attr]


@pytest.mark.parametrize("taps", [20, 129, 300])
def test_bits_do_not_depend_on_batch_mates(taps: int) -> None:
    model = make(torch.float32, pattern="L", long_length=taps)
    for rows, length in itertools.product((2, 3, 16), (7, 65, 94)):
        tokens = ids(length, rows=rows)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(rows))
        other = tokens.clone()
        other[1:] = 70
        with torch.no_grad():
            logits = model(tokens)
            assert torch.equal(model(tokens[order]), logits[order]), (rows, length)
            assert torch.equal(model(other)[0], logits[0]), (rows, length)


def test_the_first_filters() -> None:
    torch.manual_seed(0)
    policy = PrecisionPolicy(name="exact", compute_dtype=torch.float32)
    wide = config(width=512, long_length=1000, long_init="random")
    random = LongConvolution(wide, policy)
    assert float(random.h.detach().std()) == pytest.approx(0.002, rel=0.01)
    assert torch.equal(random.D, torch.ones(512))
    geometric = LongConvolution(wide.replace(long_init="geometric"), policy).h.detach()
    assert float(geometric[:, 0].std()) == pytest.approx(0.02, rel=0.15)
    # Rates rise from one to nearly half the width, per filter length, by equal factors.
    for channels, rate in ((slice(0, 8), 1.0), (slice(252, 260), 16.0), (slice(504, 512), 249.0)):
        decay = torch.exp(torch.tensor(-rate * 0.01))  # over ten of the thousand lags
        early = geometric[channels, :10].std()
        late = geometric[channels, 10:20].std()
        assert float(late / early) == pytest.approx(float(decay), rel=0.35)
    # Whatever the length: by half of it the slowest have fallen by about exp(-1/2).
    for length in (1000, 100):
        geometric = LongConvolution(
            wide.replace(long_init="geometric", long_length=length), policy
        ).h.detach()
        half = geometric[:16, length // 2 :].std() / geometric[:16, : length // 2].std()
        assert float(half) == pytest.approx(torch.exp(torch.tensor(-0.54)).item(), rel=0.1)


def test_filters_are_smoothed_then_squashed_then_thinned_out_in_training_alone() -> None:
    model = make(long_smooth=3, long_smooth_spectrum=5, long_squash=0.004, long_dropout=0.25)
    mixer = mixer_of(model)
    expected = squash(smooth_spectrum(smooth(mixer.h, 3), 5), 0.004)
    mixer.eval()
    torch.testing.assert_close(mixer.regularised(mixer.h), expected)
    assert 0.05 < float((expected == 0).double().mean()) < 0.95
    mixer.train()
    torch.manual_seed(0)
    thinned = mixer.regularised(mixer.h)
    kept = thinned != 0
    torch.testing.assert_close(thinned[kept], expected[kept] / 0.75)
    lost = (~kept & (expected != 0)).double().sum() / (expected != 0).double().sum()
    assert float(lost) == pytest.approx(0.25, abs=0.04)
    with torch.no_grad():
        torch.testing.assert_close(mixer.regularised(mixer.h), expected)


def test_what_is_regularised_is_what_is_convolved_on_both_sides() -> None:
    mixer = mixer_of(make(long_smooth=3, long_bidirectional=True)).eval()
    assert mixer.h_ahead is not None
    qkv = torch.randn(1, 9, 48, dtype=torch.float64)
    before = mixer(qkv)[0]
    with torch.no_grad():
        for h in (mixer.h, mixer.h_ahead):
            h.copy_(mixer.regularised(h))
    mixer.regularised = lambda h: h  # type: ignore[method-assign]
    torch.testing.assert_close(mixer(qkv)[0], before)


def test_dropout_is_drawn_again_as_it_was_under_activation_checkpointing() -> None:
    tokens = ids(40)
    weights = torch.ones(2, 40)
    found = []
    for size in (0, 1):
        model = make(long_dropout=0.5)
        objective = NextTokenObjective(model, checkpoint_blocks=size)
        torch.manual_seed(3)
        total, _ = objective(tokens, tokens.roll(-1, 1), weights)
        total.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("form", ["free", "additive"])
def test_dropout_of_butterflies_takes_whole_entries_in_training_alone(form: str) -> None:
    model = make(long_butterfly=form, long_butterfly_dropout=0.3, long_butterfly_heads=4)
    mixer = mixer_of(model)
    factors = mixer.input_factors
    assert factors is not None
    with torch.no_grad():
        factors["16"].fill_(2.0)
    torch.manual_seed(0)
    thinned = mixer._thinned(factors)[16] / factors["16"]
    gone = thinned == 0
    assert torch.equal(gone[..., 0], gone[..., 1])
    assert float(gone.double().mean()) == pytest.approx(0.3, abs=0.05)
    torch.testing.assert_close(thinned[~gone], torch.full_like(thinned[~gone], 1 / 0.7))
    mixer.eval()
    assert torch.equal(mixer._thinned(factors)[16], factors["16"])


@pytest.mark.parametrize("changes", [{}, *LOOKS_AHEAD])
def test_tensors_and_counts_are_those_of_the_table(changes: dict[str, object]) -> None:
    for length in (1, 5, 64, 200):
        shape = config(**changes, long_length=length, context_length=length)
        model = StripedHyena2(shape, generator_seed=0)
        found = {name: tuple(x.shape) for name, x in model.state_dict().items()}
        assert found == tensor_shapes(shape)
        assert sum(p.numel() for p in model.parameters()) == shape.parameter_count()


def test_operations_count_the_taps_that_meet_a_position() -> None:
    def mixer(length: int, **changes: object) -> int:
        """Of a long convolution, per channel, without what the two kinds have in common."""
        long, short = (config(pattern=p, **changes) for p in "LS")
        difference = forward_flops(long, length) - forward_flops(short, length)
        return difference // 16 + 2 * 7 * length

    assert mixer(10, long_length=4) == 2 * (1 + 2 + 3 + 4 * 7)
    assert mixer(3, long_length=4) == 2 * (1 + 2 + 3)
    ahead = 0 + 1 + 2 + 3 + 4 * 6
    assert mixer(10, long_length=4, long_bidirectional=True) == 2 * (1 + 2 + 3 + 4 * 7 + ahead)
    # 400 taps or fewer of 512 points: passes of 16, 16 and 2 points.
    assert learned_block_sizes(learned_transform_size(200)) == (16, 16, 2)
    assert mixer(100, long_butterfly="free") == 512 * (3 * 8 * 34 + 6)


@pytest.mark.parametrize("changes", [{}, *LOOKS_AHEAD])
def test_the_format_keeps_every_bit(tmp_path: Path, changes: dict[str, object]) -> None:
    model = make(torch.float32, **changes)
    save_pretrained(model.state_dict(), model.config, tmp_path / "m", provenance={"source": "test"})
    again = load_model(tmp_path / "m", device="cpu", precision="exact")
    assert again.config == model.config
    tokens = ids(50)
    with torch.no_grad():
        assert torch.equal(again(tokens), model.eval()(tokens))


@pytest.mark.parametrize("changes", [{}, *LOOKS_AHEAD])
def test_every_parameter_is_trained_and_none_of_the_mixer_decays(
    changes: dict[str, object],
) -> None:
    model = make(torch.float32, **changes)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(butterfly_learning_rate=2e-4))
    rates = {name: group.learning_rate for group in groups for name in group.parameters}
    assert {rate for name, rate in rates.items() if "_factors." in name} <= {2e-4}
    assert {rate for name, rate in rates.items() if "_factors." not in name} == {3e-3}
    decays = {name for group in groups if group.weight_decay for name in group.parameters}
    assert decays and not any(".mixer." in name for name in decays)
    optimizer = build_optimizer(groups, OptimizerConfig())
    for _ in range(2):  # a skip of zero hides the filters from the first step's gradients
        loss = torch.nn.functional.cross_entropy(model(ids(60)).flatten(0, 1), ids(60).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(before)


def test_a_hybrid_generates_and_scores_as_one_pass_does() -> None:
    model = make(torch.float32, pattern="L*H", vocab_size=512, tie_embeddings=False).eval()
    with torch.no_grad():
        mixer_of(model).h.mul_(20)
    prompt, produced = "ACGTTGCA" * 4, []
    tokens = list(prompt.encode())
    with torch.no_grad():
        for _ in range(12):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
            produced.append(tokens[-1])
    found = generate(model, prompt, max_new_tokens=12, temperature=0)
    assert found == ByteTokenizer().decode(produced) and len(set(found)) > 1
    alone = log_likelihood(model, [prompt])
    assert log_likelihood(model, [prompt, "ACGT" * 30])[0] == pytest.approx(alone[0], rel=1e-6)


@pytest.mark.parametrize("changes", LOOKS_AHEAD)
def test_models_that_look_ahead_say_what_they_cannot_do(changes: dict[str, object]) -> None:
    model = make(torch.float32, **changes)
    tokens = ids(20)
    assert model(tokens).shape == (2, 20, 256)
    reason = "long_butterfly is|long_bidirectional is true"
    with pytest.raises(UsageError, match=rf"toy cannot take a sequence in pieces.*({reason})"):
        model(tokens, return_state=True)
    with pytest.raises(UsageError, match="cannot take a sequence in pieces"):
        mixer_of(model)(torch.zeros(1, 3, 48), return_state=True)
    with pytest.raises(UsageError, match="cannot predict the next base"):
        model.token_log_probs(tokens)
    with pytest.raises(UsageError, match="cannot predict the next base"):
        log_likelihood(model, ["ACGT" * 60])
    with pytest.raises(UsageError, match="cannot predict the next base"):
        PositionModel(model)
    with pytest.raises(UsageError, match="cannot be trained to predict the next base"):
        NextTokenObjective(model)
    with pytest.raises(UsageError, match="cannot take a sequence in pieces"):
        generate(model, "ACGT")


@pytest.mark.parametrize("changes", LOOKS_AHEAD)
def test_models_that_look_ahead_embed_sequences_whole_and_without_padding(
    changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(torch.float32, **changes)
    monkeypatch.setattr("evo_toolkit.inference.embed.CHUNK", 50)
    sequences = ["ACGT" * 20, "ACG"]
    found = embed(model, sequences, "norm", pool="none")["norm"]
    for sequence, values in zip(sequences, found, strict=True):
        tokens = torch.tensor([list(sequence.encode())])
        with torch.no_grad():
            expected = model.norm(model.hidden(tokens)[0])[0]
        torch.testing.assert_close(torch.from_numpy(values), expected)


def test_learned_butterflies_take_sequences_up_to_the_filter() -> None:
    model = make(long_butterfly="free")
    with pytest.raises(ValueError, match=r"201 positions, but .* at most 200"):
        model(ids(201))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"long_length": 0}, "long_length is 0"),
        ({"long_length": 1.5}, r"long_length is 1\.5"),
        ({"long_smooth": 4}, "long_smooth is 4; a window has an odd width"),
        ({"long_smooth_spectrum": 2}, "long_smooth_spectrum is 2"),
        ({"long_squash": -0.1}, r"long_squash is -0\.1; it must be a number of at least 0"),
        ({"long_squash": float("inf")}, "long_squash is inf; it must be a number"),
        ({"long_squash": "x"}, "long_squash is 'x'; it must be a number"),
        ({"long_dropout": None}, "long_dropout is None; a share"),
        ({"long_dropout": 1.0}, r"long_dropout is 1\.0; a share"),
        ({"long_butterfly_dropout": -1}, "long_butterfly_dropout is -1"),
        ({"long_init": "zeros"}, "long_init is 'zeros'; use random, geometric"),
        ({"long_butterfly": "learned"}, "long_butterfly is 'learned'; use fixed, free, additive"),
        ({"long_butterfly_heads": 3}, "long_butterfly_heads 3 does not divide width 16"),
        (
            {"long_butterfly": "free", "context_length": 201},
            "context_length 201 is above long_length 200, and a learned butterfly",
        ),
        ({"long_bidirectional": "yes"}, "long_bidirectional is 'yes'; it must be true or false"),
    ],
)
def test_values_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)
    # A pattern without long convolutions does not read them.
    config(pattern="S*", **changes)
