"""Whether a genome lies inside what a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping

from evo_toolkit.errors import OutOfDomainError
from evo_toolkit.model.assemblies import match_assembly
from evo_toolkit.model.config import StripedHyena2Config

LARGEST_BASES = 200_000_000
"""A FASTA with more bases than this is taken for the genome of a larger eukaryote."""

OUT_OF_DOMAIN_FLAG = "out_of_domain"


def check_domain(
    config: StripedHyena2Config, lengths: Mapping[str, int], *, allow: bool = False
) -> str | None:
    """Return None, or, with consent, one line saying why the genome is outside the model's domain.

    Args:
        config: Of the model; only those with `forbidden_genomes` are restricted.
        lengths: Length of each contig of the genome, in bases.
        allow: The user's consent. Naming the model is none.

    Raises:
        OutOfDomainError: without consent.
    """
    if "vertebrate" not in config.forbidden_genomes:
        return None
    match = match_assembly(lengths)
    total = sum(lengths.values())
    if match is not None:
        found = f"contig {match.contig} has the name and length of {match.species} {match.assembly}"
    elif total > LARGEST_BASES:
        found = f"the genome has {total:,} bases, more than {LARGEST_BASES:,}"
    else:
        return None
    trained = ", ".join(config.domains) or "other genomes"
    if not allow:
        raise OutOfDomainError(
            f"{config.name} was trained on {trained} and {found}; use a model for this genome "
            "(-m evo2_7b), or --allow-out-of-domain (allow_out_of_domain=True) to run it all the same"
        )
    return f"out of domain: {config.name} was trained on {trained} and {found}; its scores say nothing reliable here"
