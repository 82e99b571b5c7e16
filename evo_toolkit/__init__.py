"""Genomic sequence modelling with StripedHyena 2 (Evo 2): score variants, embed, generate.

```python
import evo_toolkit as evo

model = evo.load_model("evo-mini")
table = evo.score_variants(model, "variants.vcf.gz", "genome.fa")
```

Names are imported when first used, so that importing the package imports neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from evo_toolkit._version import __version__

if TYPE_CHECKING:
    from evo_toolkit import errors
    from evo_toolkit.checkpoint.load import load_model
    from evo_toolkit.finetuning.heads import load_head
    from evo_toolkit.inference.embed import embed
    from evo_toolkit.inference.embedder import EvoEmbedder
    from evo_toolkit.inference.generate import generate
    from evo_toolkit.inference.likelihood import log_likelihood
    from evo_toolkit.model.config import StripedHyena2Config
    from evo_toolkit.variants.api import score_variants

__all__ = [
    "EvoEmbedder",
    "StripedHyena2Config",
    "__version__",
    "embed",
    "errors",
    "generate",
    "load_head",
    "load_model",
    "log_likelihood",
    "score_variants",
]

_HOMES = {
    "StripedHyena2Config": "evo_toolkit.model.config",
    "EvoEmbedder": "evo_toolkit.inference.embedder",
    "embed": "evo_toolkit.inference.embed",
    "generate": "evo_toolkit.inference.generate",
    "load_head": "evo_toolkit.finetuning.heads",
    "load_model": "evo_toolkit.checkpoint.load",
    "log_likelihood": "evo_toolkit.inference.likelihood",
    "score_variants": "evo_toolkit.variants.api",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("evo_toolkit.errors")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
