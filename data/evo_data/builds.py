"""Which genome build a contig length or a RefSeq accession belongs to: human and mouse.

Lengths of the primary chromosomes, in bases, as the Genome Reference Consortium and the T2T
Consortium published them. No two builds of a species share the length of a nuclear chromosome
except where the sequence is the same too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_HUMAN = [*map(str, range(1, 23)), "X", "Y"]
_MOUSE = [*map(str, range(1, 20)), "X", "Y"]


def _lengths(names: list[str], text: str) -> dict[str, int]:
    return dict(zip(names, map(int, text.split()), strict=True))


BUILDS: dict[str, dict[str, int]] = {
    "GRCh38 (hg38)": _lengths(_HUMAN, """
        248956422 242193529 198295559 190214555 181538259 170805979 159345973 145138636 138394717
        133797422 135086622 133275309 114364328 107043718 101991189 90338345 83257441 80373285
        58617616 64444167 46709983 50818468 156040895 57227415"""),
    "GRCh37 (hg19)": _lengths(_HUMAN, """
        249250621 243199373 198022430 191154276 180915260 171115067 159138663 146364022 141213431
        135534747 135006516 133851895 115169878 107349540 102531392 90354753 81195210 78077248
        59128983 63025520 48129895 51304566 155270560 59373566"""),
    "NCBI36 (hg18)": _lengths(_HUMAN, """
        247249719 242951149 199501827 191273063 180857866 170899992 158821424 146274826 140273252
        135374737 134452384 132349534 114142980 106368585 100338915 88827254 78774742 76117153
        63811651 62435964 46944323 49691432 154913754 57772954"""),
    "T2T-CHM13v2.0 (hs1)": _lengths(_HUMAN, """
        248387328 242696752 201105948 193574945 182045439 172126628 160567428 146259331 150617247
        134758134 135127769 133324548 113566686 101161492 99753195 96330374 84276897 80542538
        61707364 66210255 45090682 51324926 154259566 62460029"""),
    "GRCm39 (mm39)": _lengths(_MOUSE, """
        195154279 181755017 159745316 156860686 151758149 149588044 144995196 130127694 124359700
        130530862 121973369 120092757 120883175 125139656 104073951 98008968 95294699 90720763
        61420004 169476592 91455967"""),
    "GRCm38 (mm10)": _lengths(_MOUSE, """
        195471971 182113224 160039680 156508116 151834684 149736546 145441459 129401213 124595110
        130694993 122082543 120129022 120421639 124902244 104043685 98207768 94987271 90702639
        61431566 171031299 91744698"""),
}  # fmt: skip
"""Length of each chromosome (named without chr) by build."""

MITOCHONDRIA = {
    "rCRS (GRCh37's MT, GRCh38)": 16_569,
    "NC_001807 (UCSC hg19's and hg18's chrM)": 16_571,
}
"""Human mitochondrial sequences; same name, another sequence."""

# Version of NC_0000xx in each human build, chromosomes 1 to 22, X, Y.
_VERSIONS = {
    "GRCh38 (hg38)": "11 12 12 12 10 12 14 11 12 11 10 12 11 9 10 10 11 10 10 11 9 11 11 10",
    "GRCh37 (hg19)": "10 11 11 11 9 11 13 10 11 10 9 11 10 8 9 9 10 9 9 10 8 10 10 9",
}
_ACCESSIONS = {
    f"NC_{number:06d}.{version}": (build, name)
    for build, versions in _VERSIONS.items()
    for number, (name, version) in enumerate(zip(_HUMAN, versions.split(), strict=True), start=1)
}
_RCRS = "NC_012920.1"

_NAMED = (
    ("T2T-CHM13v2.0 (hs1)", r"chm13|t2t|hs1"),
    ("GRCh38 (hg38)", r"grch38|hg38|hs38(dh)?|b38|gca_000001405\.(15|[2-9]\d)|assembly38"),
    ("GRCh37 (hg19)", r"grch37|hg19|hs37(d5)?|b37|g1k_v37|v37"),
    ("NCBI36 (hg18)", r"ncbi36|hg18|b36"),
    ("GRCm39 (mm39)", r"grcm39|mm39"),
    ("GRCm38 (mm10)", r"grcm38|mm10"),
)


def chromosome(name: str) -> str:
    """Return a chromosome's name without `chr`; M, MT and chrMT are `MT`."""
    stem = name[3:] if name[:3].lower() == "chr" and len(name) > 3 else name
    return "MT" if stem.lower() in ("m", "mt") else stem


def build_of_lengths(lengths: Mapping[str, int | None]) -> str | None:
    """Return the build whose chromosomes have these lengths, or None.

    Only chromosomes count: other contigs, and those without a length, say nothing. Where several
    builds fit, the one with the most chromosomes of the right length wins; a tie is None.
    """
    votes = {
        build: sum(known.get(chromosome(name)) == length for name, length in lengths.items())
        for build, known in BUILDS.items()
    }
    best = max(votes.values())
    winners = [build for build, count in votes.items() if count == best]
    return winners[0] if best and len(winners) == 1 else None


def build_of_length(name: str, length: int) -> str | None:
    """Return the build in which the chromosome of this name is so long, or None."""
    stem = chromosome(name)
    if stem == "MT":
        return next((build for build, known in MITOCHONDRIA.items() if known == length), None)
    return next((build for build, known in BUILDS.items() if known.get(stem) == length), None)


def build_named(text: str) -> str | None:
    """Return the build that a text (a file name, a `##reference` line) names, or None."""
    for build, pattern in _NAMED:
        if re.search(rf"(?<![a-z0-9])({pattern})(?![a-z0-9])", text.lower()):
            return build
    return None


def accession(name: str) -> tuple[str, int] | None:
    """Return chromosome (without chr) and length in bases of a human RefSeq accession with version.

    `NC_000017.11` gives `("17", 83257441)`, GRCh38's chromosome 17; `NC_000017.10` is GRCh37's.
    None for any other name.
    """
    if name == _RCRS:
        return "MT", 16_569
    known = _ACCESSIONS.get(name)
    return (known[1], BUILDS[known[0]][known[1]]) if known else None


def accessions(chromosome_name: str, length: int) -> list[str]:
    """Return the human RefSeq accessions of a chromosome of this length; at most one."""
    if chromosome_name == "MT":
        return [_RCRS] if length == 16_569 else []
    return [
        known
        for known, (build, name) in _ACCESSIONS.items()
        if name == chromosome_name and BUILDS[build][name] == length
    ]
