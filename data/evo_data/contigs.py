"""Matching the contig names of a variant file to those of a genome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from evo_data.builds import accession, accessions, build_of_lengths, chromosome
from evo_data.errors import ContigError

# Columns of an NCBI assembly report that hold names, by their headings.
_REPORT_NAMES = ("Sequence-Name", "GenBank-Accn", "RefSeq-Accn", "UCSC-style-name")
_CAMBRIDGE, _OLDER_MITOCHONDRION = 16_569, 16_571
_OLDER_BUILDS = ("GRCh37 (hg19)", "NCBI36 (hg18)")
_NO_NAME = frozenset({"", "na", "."})


class ContigAliases(Mapping[str, str]):
    """The genome's name for each contig name of a variant file, found when asked for.

    In this order: the same name; a name from an alias file; `1` for `chr1` and back (`chr` in any
    case), and so M, MT, chrM and chrMT; a human RefSeq accession with version (NC_000017.11) for
    the chromosome of that build's length. Any of them is used only where it fits exactly one
    contig and, if the variant file declares a length, that length is the contig's: hg19's chrM
    and GRCh37's MT are different sequences. Iterating yields the names that were asked for and
    are known.
    """

    def __init__(
        self,
        genome: Mapping[str, int],
        declared_lengths: Mapping[str, int | None] | None = None,
        *,
        synonyms: Sequence[frozenset[str]] = (),
        any_length: bool = False,
    ) -> None:
        """Prepare.

        Args:
            genome: Length of each contig of the genome, in bases.
            declared_lengths: Lengths from the variant file's header, where it has them.
            synonyms: Sets of names that stand for one contig (`read_alias_file`).
            any_length: Use a contig of the same name whatever its length.
        """
        self._genome = genome
        self._declared = declared_lengths or {}
        self._any_length = any_length
        self._by_stem: dict[str, list[str]] = {}
        for contig, length in genome.items():
            stem = chromosome(contig)
            self._by_stem.setdefault(stem, []).append(contig)
            for name in accessions(stem, length):
                self._by_stem.setdefault(name, []).append(contig)
        self._synonyms: dict[str, set[str]] = {}
        for names in synonyms:
            contigs = names & genome.keys()
            for name in names:
                self._synonyms.setdefault(name, set()).update(contigs)
        self._found: dict[str, str | None] = {}

    def __getitem__(self, name: str) -> str:
        if name not in self._found:
            self._found[name] = self._find(name)
        found = self._found[name]
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return (name for name, found in self._found.items() if found is not None)

    def __len__(self) -> int:
        return sum(found is not None for found in self._found.values())

    def disagreement(self, name: str) -> tuple[str, int, int] | None:
        """Return a contig that the name stands for but whose length is not the declared one.

        Returns:
            The genome's name, the declared and the genome's length in bases; None if the lengths
            agree, none is declared, or no contig is meant.
        """
        declared = self._declared.get(name)
        fitting = self._fitting(name)
        if declared is None or not fitting:
            return None
        if any(self._genome[contig] == declared for contig in fitting):
            return None
        return fitting[0], declared, self._genome[fitting[0]]

    def _find(self, name: str) -> str | None:
        if self._any_length and name in self._genome:
            return name
        fitting = self._fitting(name)
        length = self._declared.get(name)
        if length is not None:
            fitting = [contig for contig in fitting if self._genome[contig] == length]
        return fitting[0] if len(fitting) == 1 else None

    def _other_mitochondrion(self, name: str, contig: str) -> bool:
        """Whether both are mitochondrial names of man, but of the two sequences of two lengths.

        Without a declared length the name tells: MT is the revised Cambridge sequence (16,569
        bases), and the chrM of hg19 is the older one (16,571 bases); hg38's chrM is the former.
        """
        if chromosome(name) != "MT" or self._declared.get(name) is not None:
            return False
        length = self._genome[contig]
        if name.lower() in ("mt", "chrmt"):
            return length == _OLDER_MITOCHONDRION
        return length == _CAMBRIDGE and build_of_lengths(self._genome) in _OLDER_BUILDS

    def _fitting(self, name: str) -> list[str]:
        """Return the contigs that the name may stand for, whatever their lengths."""
        if name in self._genome:
            return [name]
        if self._synonyms.get(name):
            return sorted(self._synonyms[name])
        stem = chromosome(name)
        fitting = self._by_stem.get(stem, [])
        if fitting:
            return [contig for contig in fitting if not self._other_mitochondrion(name, contig)]
        known = accession(name)
        if known is None:
            return []
        stem, length = known
        return [c for c in self._by_stem.get(stem, []) if self._genome[c] == length]


def read_alias_file(path: Path | str) -> list[frozenset[str]]:
    """Return sets of names that stand for one contig each.

    Every line holds the names of one contig, separated by white space or tabs: two columns as for
    `bcftools annotate --rename-chrs`, UCSC's chromAlias.txt, or an NCBI assembly report, of which
    the columns Sequence-Name, GenBank-Accn, RefSeq-Accn and UCSC-style-name are used. Lines that
    begin with # are comments; `na` and `.` are no names.

    Raises:
        ContigError: if the file cannot be read, or a line has only one name.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ContigError(f"{path}: the alias file cannot be read: {error}") from error
    columns: list[int] | None = None
    synonyms = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("#"):
            headings = line.lstrip("# ").split("\t")
            if "RefSeq-Accn" in headings:
                columns = [headings.index(name) for name in _REPORT_NAMES if name in headings]
            continue
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
        if columns is not None:
            fields = [fields[column] for column in columns if column < len(fields)]
        names = frozenset(field for field in fields if field not in _NO_NAME)
        if len(fields) < 2:
            raise ContigError(
                f"{path}:{number}: one name alone, {line.strip()!r}; a line of an alias file has "
                "the names of one contig, separated by tabs"
            )
        synonyms.append(names)
    return synonyms
