"""Matching the contig names of a variant file to those of a genome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_MITOCHONDRIAL = frozenset({"m", "mt"})


class ContigAliases(Mapping[str, str]):
    """The genome's name for each contig name of a variant file, found when asked for.

    The same name wins. Otherwise `1` and `chr1` stand for each other (`chr` in any case), and so
    do M, MT, chrM and chrMT. Such an alias is used only if it fits exactly one contig and, where
    the variant file declares a length, that length is the contig's: hg19's chrM and GRCh37's MT
    are different sequences. Iterating yields the names that were asked for and are known.
    """

    def __init__(
        self, genome: Mapping[str, int], declared_lengths: Mapping[str, int | None] | None = None
    ) -> None:
        """Prepare.

        Args:
            genome: Length of each contig of the genome, in bases.
            declared_lengths: Lengths from the variant file's header, where it has them.
        """
        self._genome = genome
        self._declared = declared_lengths or {}
        self._by_stem: dict[str, list[str]] = {}
        for contig in genome:
            self._by_stem.setdefault(_stem(contig), []).append(contig)
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

    def _find(self, name: str) -> str | None:
        if name in self._genome:
            return name
        fitting = self._by_stem.get(_stem(name), [])
        length = self._declared.get(name)
        if length is not None:
            fitting = [contig for contig in fitting if self._genome[contig] == length]
        return fitting[0] if len(fitting) == 1 else None


def _stem(name: str) -> str:
    """Return the name without `chr`; one common stem for the mitochondrial names."""
    stem = name[3:] if name[:3].lower() == "chr" and len(name) > 3 else name
    return "MT" if stem.lower() in _MITOCHONDRIAL else stem
