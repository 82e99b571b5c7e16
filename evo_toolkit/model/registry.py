"""The models that are known by name: their configurations, where their weights live, what they are right for.

Torch-free, so that `models list` and the command line's help are quick. Facts about released
checkpoints are from their published configurations and repositories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evo_toolkit.model.config import Evidence, StripedHyena2Config

_SDH_ATTN = "SDH*SDHSDH*SDHSDH*SDHSDH*"
_7B_PATTERN = _SDH_ATTN + "SDHSDH*"
_20B_PATTERN = "SDH*SDHSDH*SDHSDH*SDHSDH"
_40B_PATTERN = _SDH_ATTN + "SDHSDH*SDH*SDHSDH*SDHSDH*"

_ALL_DOMAINS = ("bacteria", "archaea", "eukaryotes", "phages")
_NOT_EUKARYOTIC_VIRUSES = ("viruses of eukaryotes (left out of the training data by choice)",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One named model.

    Attributes:
        config: Its configuration.
        repo: Repository on the Hugging Face hub.
        filename: The checkpoint in that repository (or the base name of its `.partN` pieces).
        download_gb: Size of the download in 10^9 bytes.
        note: One line for `models list`.
    """

    config: StripedHyena2Config
    repo: str
    filename: str
    download_gb: float
    note: str


def _evo2(name: str, *, repo: str | None = None, gb: float, note: str, **config: Any) -> ModelEntry:
    defaults: dict[str, Any] = {
        "name": name,
        "domains": _ALL_DOMAINS,
        "not_for": _NOT_EUKARYOTIC_VIRUSES,
        "default_window": 8192,
    }
    return ModelEntry(
        config=StripedHyena2Config(**{**defaults, **config}),
        repo=repo or f"arcinstitute/{name}",
        filename=f"{name}.pt",
        download_gb=gb,
        note=note,
    )


_7B: dict[str, Any] = {
    "pattern": _7B_PATTERN,
    "width": 4096,
    "num_heads": 32,
    "mlp_width": 11008,
    "filter_groups": 256,
    "fp8": "insensitive",
}
_40B: dict[str, Any] = {
    "pattern": _40B_PATTERN,
    "width": 8192,
    "num_heads": 64,
    "filter_groups": 512,
    "rotary_base": 1e6,
    "fp8": "hopper",
}

MODELS: dict[str, ModelEntry] = {
    entry.config.name: entry
    for entry in (
        _evo2(
            "evo2_1b_base", pattern=_SDH_ATTN, width=1920, num_heads=15, mlp_width=5120,
            filter_groups=128, context_length=8192, fp8="hopper", gb=2.3,
            note="8k context; needs Hopper FP8 projections to be accurate",
        ),
        _evo2("evo2_7b_base", **_7B, context_length=32768, gb=13.0, note="8k training context"),
        _evo2(
            "evo2_7b_262k", **_7B, context_length=262144, rotary_interpolation=32.0, gb=13.0,
            note="262k context",
        ),
        _evo2(
            "evo2_7b", **{**_7B, "mlp_width": 11264}, context_length=1048576,
            rotary_interpolation=128.0, gb=13.2, note="1M context; right in bf16: the one to use",
        ),
        _evo2(
            "evo2_7b_microviridae", **{**_7B, "domains": ("phages (Microviridae)",)}, context_length=32768,
            repo="evo-design/evo-2-7b-8k-microviridae", gb=13.0,
            note="7B base fine-tuned on Microviridae phages",
        ),
        _evo2(
            "evo2_20b", pattern=_20B_PATTERN, width=8192, num_heads=64, mlp_width=22528,
            filter_groups=512, context_length=1048576, rotary_base=1e6, rotary_interpolation=128.0,
            fp8="hopper", gb=39.5, note="1M context; needs Hopper FP8 projections",
        ),
        _evo2(
            "evo2_40b_base", **_40B, mlp_width=21888, context_length=8192, gb=80.7,
            note="8k context; needs Hopper FP8 projections",
        ),
        _evo2(
            "evo2_40b", **_40B, mlp_width=22528, context_length=1048576, rotary_interpolation=128.0,
            gb=82.2, note="1M context; needs Hopper FP8 projections",
        ),
    )
}  # fmt: skip

# What bf16 costs a checkpoint that was trained with FP8 projections: mean negative log-likelihood
# in nats on an 8,192-token evaluation set, published by NVIDIA (BioNeMo's evo2_megatron README).
FP8_COST: dict[str, str] = {
    "evo2_1b_base": "1.244 nats per base in bf16 against 1.077 with FP8 (published by NVIDIA for H200)",
    "evo2_20b": "the same pattern as the 40B, published by NVIDIA without a figure",
    "evo2_40b_base": "1.700 nats per base in bf16 against 0.922 with FP8 for evo2_40b (published by NVIDIA for H200): worse than guessing bases",
    "evo2_40b": "1.700 nats per base in bf16 against 0.922 with FP8 (published by NVIDIA for H200): worse than guessing bases",
}

BUNDLED = ("evo-mini",)
__all__ = ["BUNDLED", "FP8_COST", "MODELS", "Evidence", "ModelEntry"]
