"""The configuration of a StripedHyena 2: frozen, validated, free of torch.

Terms are those of the StripedHyena 2 paper: Hyena-SE (short explicit), Hyena-MR (medium
regularised), Hyena-LI (long implicit), featurizer (the short FIR on the projections), filter groups.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evo_toolkit.errors import ConfigError, UsageError
from evo_toolkit.model.layers import (
    LAYER_KINDS,
    LayerKind,
    described_symbols,
    require_positive,
    require_whole,
)

Fp8Sensitivity = Literal["none", "insensitive", "hopper"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One measured figure about a model and the command that made it."""

    metric: str
    value: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StripedHyena2Config:
    """Shape and meaning of one model.

    Attributes:
        name: What outputs call the model.
        pattern: One symbol per layer, index 0 first, of `layers.LAYER_KINDS`: `S` Hyena-SE, `D`
            Hyena-MR, `H` Hyena-LI, `*` attention, `3` H3, `4` S4D, `L` long convolution.
        width: Channels D of the residual stream.
        num_heads: Attention heads; `width / num_heads` is the head width.
        mlp_width: Inner channels F of the gated MLP.
        filter_groups: Groups that share one explicit filter in Hyena-SE and -MR; divides `width`.
            Hyena-LI has one filter per channel.
        context_length: Longest sequence seen in training, in bases.
        vocab_size: Rows of the embedding (bytes use the first 256).
        se_length, mr_length: Taps of the explicit filters.
        featurizer_length: Taps of the short FIR on q, k and v.
        li_order: Real poles per channel of Hyena-LI.
        h3_shift_length: Positions that the shift of H3 reaches over, its own included.
        h3_head_width: Channels E of a head of H3, whose E x E pairs of a key's and a value's channel
            share one filter; divides `width`.
        ssm_order: Conjugate pairs of poles per filter of H3 and S4D.
        ssm_discretisation: How H3 and S4D sample their state space model: "bilinear" or "zoh".
        ssm_min_step, ssm_max_step: Range of its steps at initialisation; a filter reaches over about
            2 / step bases.
        long_length: Taps of the explicit filters of long convolutions, one filter per channel.
        long_init: Their first values: "random" noise of one size, or "geometric", noise that fades
            with the lag, at another rate in each channel.
        long_squash: Threshold that their values are moved towards zero by.
        long_smooth, long_smooth_spectrum: Odd widths of the windows that smooth them over lags and
            over frequencies; 1 for none.
        long_dropout: Share of their values that is zero in a training step.
        long_bidirectional: Whether long convolutions have taps for later positions too; such a model
            has no states and predicts no next base.
        long_butterfly: "fixed": convolutions; "free" or "additive": learned butterflies in place of
            the Fourier transforms of inputs and filters, for sequences of up to `long_length`, which
            look ahead as well.
        long_butterfly_heads: Groups of channels with learned butterflies of their own.
        long_butterfly_dropout: Share of the learned entries that is zero in a training step.
        rotary_base: Base of the rotary frequencies.
        rotary_interpolation: Position interpolation factor: angles use position / factor.
        rotary_bf16_frequencies: Round the frequencies to bf16, as in every released checkpoint.
        gelu_layers: Layers whose MLP has a GELU; the others are bilinear. Released models have it
            in layer 0 alone, an accident of their training that the weights depend on.
        tie_embeddings: The unembedding is the transposed embedding.
        norm_eps: Added to the root mean square, outside the root.
        fp8: How the released weights depend on FP8 input projections: "none" trained without,
            "insensitive" right in bf16, "hopper" wrong without Hopper's FP8 accumulation.
        default_window: Scoring window in bases when none is asked for; the same on every device.
        domains: What the model was trained on, in words.
        not_for: What it must not be used for, in words.
        forbidden_genomes: Kinds of genome that commands refuse without consent; "vertebrate" is
            the only kind known.
        evidence: Measured figures with the commands that made them.
    """

    name: str
    pattern: str
    width: int
    num_heads: int
    mlp_width: int
    filter_groups: int
    context_length: int
    vocab_size: int = 512
    se_length: int = 7
    mr_length: int = 128
    featurizer_length: int = 3
    li_order: int = 16
    h3_shift_length: int = 64
    h3_head_width: int = 1
    ssm_order: int = 32
    ssm_discretisation: Literal["bilinear", "zoh"] = "bilinear"
    ssm_min_step: float = 1e-3
    ssm_max_step: float = 0.1
    long_length: int = 1024
    long_init: Literal["random", "geometric"] = "geometric"
    long_squash: float = 0.003
    long_smooth: int = 1
    long_smooth_spectrum: int = 1
    long_dropout: float = 0.0
    long_bidirectional: bool = False
    long_butterfly: Literal["fixed", "free", "additive"] = "fixed"
    long_butterfly_heads: int = 1
    long_butterfly_dropout: float = 0.0
    rotary_base: float = 10_000.0
    rotary_interpolation: float = 1.0
    rotary_bf16_frequencies: bool = True
    gelu_layers: tuple[int, ...] = (0,)
    tie_embeddings: bool = True
    norm_eps: float = 1e-6
    fp8: Fp8Sensitivity = "none"
    default_window: int = 8192
    domains: tuple[str, ...] = ()
    not_for: tuple[str, ...] = ()
    forbidden_genomes: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = field(default=())

    def __post_init__(self) -> None:
        if not isinstance(self.pattern, str):
            # YAML reads the digits of H3 and S4D as a number.
            quotes = (
                f": put it in quotes, '{self.pattern}'" if isinstance(self.pattern, int) else ""
            )
            raise ConfigError(f"pattern is {self.pattern!r}; it must be text{quotes}")
        if not self.pattern:
            raise ConfigError(f"pattern is empty; give each layer a symbol: {described_symbols()}")
        unknown = sorted(set(self.pattern) - set(LAYER_KINDS))
        if unknown:
            raise ConfigError(
                f"pattern {self.pattern!r} has unknown layers {unknown}; use {described_symbols()}"
            )
        require_whole(self, (
            "width", "num_heads", "mlp_width", "filter_groups", "context_length", "vocab_size",
            "se_length", "mr_length", "featurizer_length", "li_order", "default_window",
        ))  # fmt: skip
        if self.width % self.filter_groups:
            raise ConfigError(
                f"filter_groups {self.filter_groups} does not divide width {self.width}; choose a divisor"
            )
        if self.width % self.num_heads or (self.width // self.num_heads) % 2:
            raise ConfigError(
                f"num_heads {self.num_heads} must divide width {self.width} into heads of even width"
            )
        if self.vocab_size < 256:
            raise ConfigError(f"vocab_size {self.vocab_size} is below 256; tokens are bytes")
        if self.featurizer_length < 2 or self.se_length < 2 or self.mr_length < 2:
            raise ConfigError(
                "filters need at least 2 taps (featurizer_length, se_length, mr_length)"
            )
        require_positive(self, ("rotary_base", "rotary_interpolation", "norm_eps"))
        bad = [i for i in self.gelu_layers if not 0 <= i < len(self.pattern)]
        if bad:
            raise ConfigError(f"gelu_layers {bad} lie outside the {len(self.pattern)} layers")
        if self.fp8 not in ("none", "insensitive", "hopper"):
            raise ConfigError(f"fp8 is {self.fp8!r}; use none, insensitive or hopper")
        for kind in self.layer_kinds():
            kind.check(self)

    @property
    def num_layers(self) -> int:
        return len(self.pattern)

    @property
    def head_width(self) -> int:
        return self.width // self.num_heads

    def parameter_count(self) -> int:
        """Trainable parameters, the tied embedding counted once."""
        D = self.width
        total = D + self.vocab_size * D * (1 if self.tie_embeddings else 2)
        for symbol in self.pattern:
            kind = LAYER_KINDS[symbol]
            total += 2 * D + 3 * D * self.mlp_width + kind.streams * D * D + D * D + D
            total += sum(
                math.prod(shape)
                for name, shape in kind.tensors(self).items()
                if name not in kind.buffers
            )
        return total

    def layer_kinds(self) -> list[LayerKind]:
        """Each kind of layer that the pattern has, once."""
        return [kind for symbol, kind in LAYER_KINDS.items() if symbol in self.pattern]

    def looks_ahead(self) -> str:
        """Which layers let outputs depend on later positions, and why, for messages; "" for none."""
        found = ((kind.name, kind.looks_ahead(self)) for kind in self.layer_kinds())
        return "; ".join(f"{name}: {reason}" for name, reason in found if reason)

    def require_causal(self, purpose: str) -> None:
        """Raise unless every output depends on no later position.

        Args:
            purpose: What the model is asked to do, after "cannot", for the message.

        Raises:
            UsageError: for a pattern with layers that look ahead.
        """
        reason = self.looks_ahead()
        if reason:
            raise UsageError(
                f"{self.name} cannot {purpose}: some of its layers look at later positions ({reason}); use a model without such layers, or this one's logits and embeddings of whole sequences"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for JSON.

        Fields of kinds of layer that the pattern does not have are left out where they have their
        defaults: a file says what its model is made of, and is the same in every version.
        """
        values = dataclasses.asdict(self)
        used = {name for kind in self.layer_kinds() for name in kind.fields}
        unused = {name for kind in LAYER_KINDS.values() for name in kind.fields} - used
        for f in dataclasses.fields(self):
            if f.name in unused and getattr(self, f.name) == f.default:
                del values[f.name]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StripedHyena2Config:
        """Inverse of `to_dict`.

        Raises:
            ConfigError: for keys this version does not know (it is older than the file) and for
                values that do not fit.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ConfigError(f"unknown configuration keys {unknown}; known are {sorted(known)}")
        prepared: dict[str, Any] = dict(values)
        try:
            for name in ("gelu_layers", "domains", "not_for", "forbidden_genomes"):
                if name in prepared:
                    if isinstance(prepared[name], str):
                        raise ConfigError(f"{name} is text; it must be a list")
                    prepared[name] = tuple(prepared[name])
            if "evidence" in prepared:
                prepared["evidence"] = tuple(
                    e if isinstance(e, Evidence) else Evidence(**e) for e in prepared["evidence"]
                )
            return cls(**prepared)
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"configuration does not fit: {error}") from None

    def replace(self, **changes: Any) -> StripedHyena2Config:
        """A copy with some values changed, validated again."""
        return dataclasses.replace(self, **changes)


def config_from_vortex(values: dict[str, Any]) -> StripedHyena2Config:
    """Translate a released (vortex) configuration: the YAML or JSON beside an Evo 2 checkpoint.

    Args:
        values: Keys as in the released files; keys without influence on the function are ignored.

    Raises:
        ConfigError: for a model of another family, one whose function we do not reproduce, or
            values of the wrong kind.
    """
    try:
        return _translate_vortex(values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"a value of the Evo 2 configuration is of the wrong kind: {error}"
        ) from None


def _translate_vortex(values: dict[str, Any]) -> StripedHyena2Config:

    def need(key: str) -> Any:
        if values.get(key) is None:
            raise ConfigError(
                f"the configuration lacks {key!r}; is it an Evo 2 (StripedHyena 2) configuration?"
            )
        return values[key]

    def refuse_unless(key: str, allowed: object, default: object) -> None:
        given = values.get(key, default)
        if given is None:
            given = default
        if given != allowed:
            raise ConfigError(
                f"{key} is {given!r}; only {allowed!r} is supported (StripedHyena 2 as released for Evo 2)"
            )

    refuse_unless("proj_groups", 1, 1)
    refuse_unless("column_split_hyena", False, False)
    refuse_unless("hyena_flip_x1x2", False, False)
    refuse_unless("short_filter_bias", False, False)
    refuse_unless("qkv_proj_bias", False, False)
    refuse_unless("mha_out_proj_bias", True, True)
    refuse_unless("hyena_out_proj_bias", True, True)
    refuse_unless("final_norm", True, True)
    refuse_unless("mlp_activation", "gelu", "gelu")
    refuse_unless("column_split", True, True)
    refuse_unless("interleave", True, False)

    num_layers = int(need("num_layers"))
    symbols: dict[int, str] = {}
    for key, symbol in (("hcs_layer_idxs", "S"), ("hcm_layer_idxs", "D"), ("hcl_layer_idxs", "H"), ("attn_layer_idxs", "*")):  # fmt: skip
        for index in need(key):
            symbols[int(index)] = symbol
    missing = [i for i in range(num_layers) if i not in symbols]
    if missing or len(symbols) != num_layers:
        raise ConfigError(f"layers {missing or sorted(symbols)} do not fit num_layers {num_layers}")
    width = int(need("hidden_size"))
    groups = int(need("hcm_filter_groups"))
    if int(need("hcs_filter_groups")) != groups:
        raise ConfigError(
            "hcs_filter_groups and hcm_filter_groups differ; only equal ones are supported"
        )
    mlp_width = values.get("inner_mlp_size")
    if mlp_width is None:
        multiple = int(values.get("inner_size_multiple_of") or 64)
        mlp_width = multiple * math.ceil(int(8 * width / 3) / multiple)
    interpolated = bool(values.get("use_interpolated_rotary_pos_emb"))
    factor = float(values.get("rotary_emb_scaling_factor") or 1) if interpolated else 1.0
    return StripedHyena2Config(
        name=str(values.get("model_name") or "evo2"),
        pattern="".join(symbols[i] for i in range(num_layers)),
        width=width,
        num_heads=int(need("num_attention_heads")),
        mlp_width=int(mlp_width),
        filter_groups=groups,
        context_length=int(need("max_seqlen")),
        vocab_size=int(need("vocab_size")),
        se_length=int(need("hcs_filter_length")),
        mr_length=int(need("hcm_filter_length")),
        featurizer_length=int(need("short_filter_length")),
        li_order=int(need("state_size")),
        rotary_base=float(values.get("rotary_emb_base") or 1_000_000),
        rotary_interpolation=factor,
        gelu_layers=(0,) if values.get("evo2_style_activations") else tuple(range(num_layers)),
        tie_embeddings=bool(values.get("tie_embeddings", True)),
        norm_eps=float(values.get("eps") or 1e-6),
    )


def read_config(path: Path | str) -> StripedHyena2Config:
    """Read our `config.json`, or a released Evo 2 configuration in JSON or YAML.

    Raises:
        ConfigError: when the file is neither.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read configuration {path}: {error}") from None
    try:
        if path.suffix in (".yml", ".yaml"):
            import yaml

            values = yaml.safe_load(text)
        else:
            values = json.loads(text)
    except Exception as error:  # noqa: BLE001 - any parser error is the user's file
        detail = str(error).splitlines()[0]
        raise ConfigError(
            f"configuration {path} is not valid {path.suffix or 'JSON'}: {detail}"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(
            f"configuration {path} holds a {type(values).__name__}, not keys and values"
        )
    if "pattern" in values:
        return StripedHyena2Config.from_dict(
            {k: v for k, v in values.items() if k != "format_version"}
        )
    return config_from_vortex(values)
