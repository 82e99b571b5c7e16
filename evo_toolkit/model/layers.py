"""The kinds of layer: one table from a symbol of a pattern to all that depends on the kind.

Free of torch, like the configuration. A new mixer is one entry here, its module, its state in
`state.py` and its fields in `StripedHyena2Config`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evo_toolkit.errors import ConfigError

if TYPE_CHECKING:
    from evo_toolkit.model.config import StripedHyena2Config

Shapes = dict[str, tuple[int, ...]]


def _no_check(config: StripedHyena2Config) -> None:
    pass


def _causal(config: StripedHyena2Config) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """What the rest of the toolkit knows of one kind of layer.

    Attributes:
        name: What messages call it.
        mixer: Where its module lies, `package.module:Class`, imported when a layer is built. It is
            made by `Class(config, policy)` and called with `[B, L, streams * D]`, a state or None,
            and `return_state`; it returns `[B, L, D]` and the new state or None.
        tensors: Shapes of the mixer's parameters and buffers by their names.
        operations: Of the mixer, for one sequence of a length; `training.flops` says what counts.
        streams: How many inputs of the model's width the projection makes; 3 are [q | k | v].
        buffers: Which tensors are not trained.
        fields: Fields of the configuration for this kind and few others. A configuration is written
            without them, as long as they have their defaults, where its pattern has no such layer.
        check: Raises ConfigError for values that do not fit; called for patterns with such a layer.
        looks_ahead: What makes its outputs depend on later positions, for messages, or "". Such a
            model has no states and predicts no next base.
        released: Whether released models have it: their file formats, and the precision "vortex",
            know no other kinds.
    """

    name: str
    mixer: str
    tensors: Callable[[StripedHyena2Config], Shapes]
    operations: Callable[[StripedHyena2Config, int], int]
    streams: int = 3
    buffers: frozenset[str] = frozenset()
    fields: tuple[str, ...] = ()
    check: Callable[[StripedHyena2Config], None] = _no_check
    looks_ahead: Callable[[StripedHyena2Config], str] = _causal
    released: bool = False


def require_whole(config: StripedHyena2Config, names: Iterable[str]) -> None:
    """Raise ConfigError unless the fields are whole numbers of at least 1."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1")


def _is_number(value: object) -> bool:
    """Whether it is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def require_positive(config: StripedHyena2Config, names: Iterable[str]) -> None:
    """Raise ConfigError unless the fields are finite numbers above 0."""
    for name in names:
        value = getattr(config, name)
        if not (_is_number(value) and value > 0):
            raise ConfigError(f"{name} is {value!r}; it must be a positive number")


def _featurizer_operations(config: StripedHyena2Config, length: int) -> int:
    return length * 2 * config.featurizer_length * 3 * config.width


def _hyena_se_tensors(config: StripedHyena2Config) -> Shapes:
    return {
        "featurizer": (3 * config.width, config.featurizer_length),
        "h": (config.filter_groups, config.se_length),
    }


def _hyena_se_operations(config: StripedHyena2Config, length: int) -> int:
    return _featurizer_operations(config, length) + length * 2 * config.se_length * config.width


def _hyena_mr_tensors(config: StripedHyena2Config) -> Shapes:
    return {
        "featurizer": (3 * config.width, config.featurizer_length),
        "h": (config.filter_groups, config.mr_length),
        "D": (config.width,),
    }


def _hyena_mr_operations(config: StripedHyena2Config, length: int) -> int:
    return _featurizer_operations(config, length) + length * 2 * config.mr_length * config.width


def _hyena_li_tensors(config: StripedHyena2Config) -> Shapes:
    return {
        "featurizer": (3 * config.width, config.featurizer_length),
        "log_poles": (config.width, config.li_order),
        "residues": (config.width, config.li_order),
        "D": (config.width,),
    }


def _hyena_li_operations(config: StripedHyena2Config, length: int) -> int:
    # The state of every pole: decay, add; the output: weigh, add.
    return _featurizer_operations(config, length) + length * 4 * config.li_order * config.width


def _attention_tensors(config: StripedHyena2Config) -> Shapes:
    return {"inv_freq": (config.head_width // 2,)}


def _attention_operations(config: StripedHyena2Config, length: int) -> int:
    # Scores and weighted values over the L (L + 1) / 2 causal pairs.
    return 2 * 2 * config.width * (length * (length + 1) // 2)


def _diagonal_tensors(config: StripedHyena2Config, num_filters: int) -> Shapes:
    return {
        "log_rates": (num_filters, config.ssm_order),
        "frequencies": (num_filters, config.ssm_order),
        "C": (num_filters, config.ssm_order, 2),
        "log_step": (num_filters,),
        "D": (num_filters,),
    }


def _diagonal_operations(config: StripedHyena2Config, channels: int) -> int:
    """A position's: a complex product and a real sum for the state, half a product for the output."""
    return channels * config.ssm_order * (7 + 4)


_DIAGONAL_FIELDS = ("ssm_order", "ssm_discretisation", "ssm_min_step", "ssm_max_step")


def _check_diagonal(config: StripedHyena2Config) -> None:
    require_whole(config, ("ssm_order",))
    if config.ssm_discretisation not in ("bilinear", "zoh"):
        raise ConfigError(
            f"ssm_discretisation is {config.ssm_discretisation!r}; use bilinear or zoh"
        )
    require_positive(config, ("ssm_min_step", "ssm_max_step"))
    if config.ssm_min_step > config.ssm_max_step:
        raise ConfigError(
            f"ssm_min_step {config.ssm_min_step} is above ssm_max_step {config.ssm_max_step}; exchange them"
        )


def _s4d_tensors(config: StripedHyena2Config) -> Shapes:
    return _diagonal_tensors(config, config.width)


def _s4d_operations(config: StripedHyena2Config, length: int) -> int:
    return length * _diagonal_operations(config, config.width)


def _h3_tensors(config: StripedHyena2Config) -> Shapes:
    D, K = config.width, config.h3_shift_length
    return {
        **_diagonal_tensors(config, D // config.h3_head_width),
        "shift_B": (D, K),
        "shift_C": (D, K),
        "shift_D": (D,),
    }


def _h3_operations(config: StripedHyena2Config, length: int) -> int:
    D, E = config.width, config.h3_head_width
    shift = 2 * config.h3_shift_length * D
    # Outer products and their reading; with heads of one channel they are gates, which count nothing.
    products = 3 * D * E if E > 1 else 0
    return length * (shift + products + _diagonal_operations(config, D * E))


def _check_h3(config: StripedHyena2Config) -> None:
    _check_diagonal(config)
    require_whole(config, ("h3_shift_length", "h3_head_width"))
    if config.h3_shift_length < 2:
        raise ConfigError("filters need at least 2 taps (h3_shift_length)")
    if config.width % config.h3_head_width:
        raise ConfigError(
            f"h3_head_width {config.h3_head_width} does not divide width {config.width}; choose a divisor"
        )


def _butterfly_size(config: StripedHyena2Config) -> int:
    """Points of a learned butterfly: the power of two from twice the filter's length on."""
    return 1 << (2 * config.long_length - 1).bit_length()


def _butterfly_passes(size: int) -> list[int]:
    """Points of each pass of a learned butterfly: 16 as often as they fit, then the rest."""
    whole, rest = divmod(size.bit_length() - 1, 4)
    return [16] * whole + ([1 << rest] if rest else [])


_LONG_FIELDS = (
    "long_length", "long_init", "long_squash", "long_smooth", "long_smooth_spectrum",
    "long_dropout", "long_bidirectional", "long_butterfly", "long_butterfly_heads",
    "long_butterfly_dropout",
)  # fmt: skip


def _long_tensors(config: StripedHyena2Config) -> Shapes:
    D, heads = config.width, config.long_butterfly_heads
    shapes: Shapes = {
        "featurizer": (3 * D, config.featurizer_length),
        "h": (D, config.long_length),
    }
    if config.long_bidirectional:
        shapes["h_ahead"] = (D, config.long_length)
    shapes["D"] = (D,)
    if config.long_butterfly != "fixed":
        size = _butterfly_size(config)
        for name in ("input_factors", "filter_factors"):
            for n in sorted(set(_butterfly_passes(size)), reverse=True):
                shapes[f"{name}.{n}"] = (heads, n, n, 2)
    return shapes


def _long_operations(config: StripedHyena2Config, length: int) -> int:
    D, K = config.width, config.long_length
    featurizer = _featurizer_operations(config, length)
    if config.long_butterfly != "fixed":
        # Three transforms (input, filter, inverse) of complex products, and the spectra's product.
        size = _butterfly_size(config)
        return featurizer + D * size * (3 * 8 * sum(_butterfly_passes(size)) + 6)

    def pairs(positions: int) -> int:
        """Taps that meet a position, when the first position meets one and the others one more each."""
        reached = min(positions, K)
        return (positions - reached) * K + reached * (reached + 1) // 2

    both = pairs(length) + (pairs(length - 1) if config.long_bidirectional else 0)
    return featurizer + 2 * D * both


def _check_long(config: StripedHyena2Config) -> None:
    require_whole(
        config, ("long_length", "long_smooth", "long_smooth_spectrum", "long_butterfly_heads")
    )
    for name, allowed in (
        ("long_init", ("random", "geometric")),
        ("long_butterfly", ("fixed", "free", "additive")),
    ):
        value = getattr(config, name)
        if value not in allowed:
            raise ConfigError(f"{name} is {value!r}; use {', '.join(allowed)}")
    for name in ("long_smooth", "long_smooth_spectrum"):
        value = getattr(config, name)
        if value % 2 == 0:
            raise ConfigError(f"{name} is {value}; a window has an odd width, 1 for none")
    if not isinstance(config.long_bidirectional, bool):
        raise ConfigError(
            f"long_bidirectional is {config.long_bidirectional!r}; it must be true or false"
        )
    if not (_is_number(config.long_squash) and config.long_squash >= 0):
        raise ConfigError(
            f"long_squash is {config.long_squash!r}; it must be a number of at least 0"
        )
    for name in ("long_dropout", "long_butterfly_dropout"):
        value = getattr(config, name)
        if not (_is_number(value) and 0 <= value < 1):
            raise ConfigError(f"{name} is {value!r}; a share lies from 0 to below 1")
    if config.width % config.long_butterfly_heads:
        raise ConfigError(
            f"long_butterfly_heads {config.long_butterfly_heads} does not divide width {config.width}; choose a divisor"
        )
    if config.long_butterfly != "fixed" and config.context_length > config.long_length:
        raise ConfigError(
            f"context_length {config.context_length} is above long_length {config.long_length}, and a learned butterfly takes no longer sequences; raise long_length or lower context_length"
        )


def _long_looks_ahead(config: StripedHyena2Config) -> str:
    if config.long_butterfly != "fixed":
        return f"long_butterfly is {config.long_butterfly}"
    return "long_bidirectional is true" if config.long_bidirectional else ""


LAYER_KINDS: dict[str, LayerKind] = {
    "S": LayerKind(
        name="Hyena-SE",
        mixer="evo_toolkit.model.hyena:HyenaSE",
        tensors=_hyena_se_tensors,
        operations=_hyena_se_operations,
        released=True,
    ),
    "D": LayerKind(
        name="Hyena-MR",
        mixer="evo_toolkit.model.hyena:HyenaMR",
        tensors=_hyena_mr_tensors,
        operations=_hyena_mr_operations,
        released=True,
    ),
    "H": LayerKind(
        name="Hyena-LI",
        mixer="evo_toolkit.model.hyena:HyenaLI",
        tensors=_hyena_li_tensors,
        operations=_hyena_li_operations,
        released=True,
    ),
    "*": LayerKind(
        name="attention",
        mixer="evo_toolkit.model.attention:Attention",
        tensors=_attention_tensors,
        operations=_attention_operations,
        buffers=frozenset({"inv_freq"}),
        released=True,
    ),
    "3": LayerKind(
        name="H3",
        mixer="evo_toolkit.model.h3:H3",
        tensors=_h3_tensors,
        operations=_h3_operations,
        fields=("h3_shift_length", "h3_head_width", *_DIAGONAL_FIELDS),
        check=_check_h3,
    ),
    "4": LayerKind(
        name="S4D",
        mixer="evo_toolkit.model.h3:S4D",
        tensors=_s4d_tensors,
        operations=_s4d_operations,
        streams=1,
        fields=_DIAGONAL_FIELDS,
        check=_check_diagonal,
    ),
    "L": LayerKind(
        name="long convolution",
        mixer="evo_toolkit.model.long_convolution:LongConvolution",
        tensors=_long_tensors,
        operations=_long_operations,
        fields=_LONG_FIELDS,
        check=_check_long,
        looks_ahead=_long_looks_ahead,
    ),
}


def described_symbols() -> str:
    """All symbols with their names, for messages."""
    return ", ".join(f"{symbol} ({kind.name})" for symbol, kind in LAYER_KINDS.items())


def unreleased_layers(pattern: str) -> str:
    """The layers of a pattern that no released model has, for messages; "" if there are none."""
    odd = sorted({symbol for symbol in pattern if not LAYER_KINDS[symbol].released})
    return ", ".join(f"{symbol} ({LAYER_KINDS[symbol].name})" for symbol in odd)
