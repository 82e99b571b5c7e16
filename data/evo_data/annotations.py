"""Consequences that a VCF already carries: BCSQ of bcftools, CSQ of VEP, ANN of SnpEff.

Each is brought into the form of BCSQ, `consequence|gene|transcript|biotype`, one tuple of entries for
each element of ALT, as `VcfRecord.consequences` holds them. The terms stay those of the file.

Source: Ensembl VEP, "Output formats"; SnpEff, "Variant annotations in VCF format" (ANN 1.0).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from evo_data.csq import TAG
from evo_data.vcf import VcfHeader, VcfRecord

_TAGS = (TAG, "CSQ", "ANN")
# CSQ says its fields in the header, in an order of the user's choice; ANN's are fixed.
_ANN = ("Allele", "Annotation", "Annotation_Impact", "Gene_Name", "Gene_ID", "Feature_Type", "Feature_ID", "Transcript_BioType")  # fmt: skip
_FORMAT = re.compile(rb'ID=CSQ\b.*Format:\s*([^"]+?)\s*"')
_DNA_CHANGE = re.compile(r"^\d+([ACGTN]+)>(?:\d+)?([ACGTN]+)$")


@dataclass(frozen=True)
class CarriedAnnotation:
    """Reads one of the annotations of a file.

    Attributes:
        tag: Its INFO key.
        fields: Names of an entry's fields; empty for BCSQ.
    """

    tag: str
    fields: tuple[str, ...] = ()

    def entries(self, record: VcfRecord) -> tuple[tuple[str, ...], ...]:
        """The entries of each alternate allele; empty where the record has none."""
        text = _info(record, self.tag)
        if text is None:
            return ()
        found: list[list[str]] = [[] for _ in record.alts]
        if self.tag == TAG:
            for entry in text.split(","):
                for index in _bcsq_alleles(entry, record):
                    found[index].append(entry)
        else:
            names = _allele_names(record)
            for entry in text.split(","):
                values = dict(zip(self.fields, entry.split("|"), strict=False))
                for index in self._alleles(values, record, names):
                    found[index].append(self._rewritten(values))
        return tuple(map(tuple, found))

    def _alleles(
        self, values: dict[str, str], record: VcfRecord, names: list[str]
    ) -> Iterator[int]:
        number = values.get("ALLELE_NUM", "")
        if number.isdecimal():
            if 1 <= int(number) <= len(record.alts):
                yield int(number) - 1
            return
        allele = values.get("Allele", "")
        for index, alt in enumerate(record.alts):
            if allele in (alt, names[index]):
                yield index

    def _rewritten(self, values: dict[str, str]) -> str:
        if self.tag == "CSQ":
            consequence, gene = values.get("Consequence", ""), values.get("SYMBOL") or values.get("Gene", "")  # fmt: skip
            transcript, biotype = values.get("Feature", ""), values.get("BIOTYPE", "")
        else:
            consequence, gene = values.get("Annotation", ""), values.get("Gene_Name", "")
            transcript, biotype = values.get("Feature_ID", ""), values.get("Transcript_BioType", "")
        return "|".join((consequence, gene, transcript, biotype))


def carried_annotation(header: VcfHeader) -> CarriedAnnotation | None:
    """What a file's header declares, the first of BCSQ, CSQ and ANN; None if it is none of them."""
    for tag in _TAGS:
        if tag not in header.info_ids:
            continue
        if tag == TAG:
            return CarriedAnnotation(tag)
        if tag == "ANN":
            return CarriedAnnotation(tag, _ANN)
        for line in header.lines:
            if line.startswith(b"##INFO") and (match := _FORMAT.search(line)):
                fields = match[1].decode("utf-8", "replace").split("|")
                return CarriedAnnotation(tag, tuple(field.strip() for field in fields))
    return None


def with_carried(records: Iterator[VcfRecord], header: VcfHeader) -> Iterator[VcfRecord]:
    """Yield records with the consequences that they carry, where the header declares any."""
    annotation = carried_annotation(header)
    if annotation is None:
        yield from records
        return
    for record in records:
        record.consequences = annotation.entries(record)
        yield record


def _info(record: VcfRecord, tag: str) -> str | None:
    match = re.search(rb"(?:^|;)" + tag.encode() + rb"=([^;]*)", record.info)
    return None if match is None else match[1].decode("utf-8", "replace")


def _bcsq_alleles(entry: str, record: VcfRecord) -> list[int]:
    """Which alleles an entry of BCSQ is about: it says so only where it has a DNA change."""
    everyone = list(range(len(record.alts)))
    if len(record.alts) == 1:
        return everyone
    match = _DNA_CHANGE.match(entry.split("|")[-1])
    if match is None:
        return everyone
    return [i for i in everyone if record.alts[i].upper() == match[2]] or everyone


def _allele_names(record: VcfRecord) -> list[str]:
    """Alternate alleles as VEP writes them: without the base that all alleles begin with."""
    alts, ref = list(record.alts), record.ref
    plain = [alt for alt in alts if alt and alt[0] not in "<*."]
    if not any(len(alt) != len(ref) for alt in plain):
        return alts
    if any(alt[:1].upper() != ref[:1].upper() for alt in plain):
        return alts
    return [(alt[1:] or "-") if alt in plain else alt for alt in alts]
