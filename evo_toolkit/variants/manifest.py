"""What an output along a genome says about the run that made it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evo_data.fasta import Fasta
from evo_toolkit._version import __version__
from evo_toolkit.variants.run import genome_digest

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2


def describe_run(
    model: StripedHyena2, genome: Fasta, *, note: str | None = None, **options: object
) -> dict[str, object]:
    """Version, model, genome, and the options that are not None, as plain JSON values.

    Args:
        note: A remark that readers of the output must see, beside the model's own.
    """
    notes = [*model.notes, *([note] if note else [])]
    found: dict[str, object] = {
        "version": __version__,
        "model": model.config.name,
        "model_sha256": model.sha256,
        "precision": model.policy.describe(),
        "device": str(model.device),
        "genome": str(genome.path),
        "genome_contigs_sha256": genome_digest(genome),
        **options,
        "notes": notes or None,
    }
    return {key: value for key, value in found.items() if value is not None}
