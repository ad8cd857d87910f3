"""Protein sequences by gene, from FASTA as UniProt, Ensembl and GENCODE publish it, or with genes as plain headers."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vcell.data.files.genes import ENSEMBL, gene_names
from vcell.data.files.lists import read_text
from vcell.errors import VcellError, shortlist

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWYBUXZO"  # those that ESM2 has a token for
OTHER = re.compile(f"[^{AMINO_ACIDS}]")


@dataclass(frozen=True)
class Proteins:
    """The proteins of each gene.

    Attributes
    ----------
    of_gene
        Gene to the sequences of its transcripts, in the file's order.
    kind
        How genes were named in the file.
    replaced
        Letters that are no amino acid and are read as X (any).
    """

    of_gene: dict[str, list[str]]
    kind: str
    replaced: int

    @property
    def sequences(self) -> list[str]:
        """Each distinct sequence once: the short ones first, which lets batches be full."""
        return sorted({s for some in self.of_gene.values() for s in some}, key=lambda s: (len(s), s))


def read_fasta(path: str | Path) -> Proteins:
    """The proteins of a FASTA file, gzip-compressed or not.

    Raises
    ------
    VcellError
        If it is absent, not FASTA, of nucleotides, or holds nothing.
    """
    text = read_text(path, "fasta")
    if not text.lstrip().startswith(">"):
        raise VcellError(f"{path} is not FASTA: it must begin with a line >HEADER. Set fasta=FILE.fasta")
    of_gene: dict[str, list[str]] = {}
    kinds: dict[str, int] = {}
    replaced = 0
    for entry in text.lstrip()[1:].split("\n>"):
        header, _, body = entry.partition("\n")
        sequence = "".join(body.split()).upper().rstrip("*")
        gene, kind = gene_of(header)
        if not sequence or not gene:
            continue
        clean, number = OTHER.subn("X", sequence)
        replaced += number
        kinds[kind] = kinds.get(kind, 0) + 1
        of_gene.setdefault(gene, []).append(clean)
    if not of_gene:
        raise VcellError(f"{path} holds no sequences with a gene's name")
    letters = set("".join(some[0][:200] for some in list(of_gene.values())[:20]))
    if letters <= set("ACGTUNX"):
        raise VcellError(
            f"{path} holds nucleotides: {shortlist(sorted(letters), 6)}. Give proteins: GENCODE's pc_translations.fa, Ensembl's pep.all.fa"
        )
    return Proteins(of_gene, max(kinds, key=lambda kind: kinds[kind]), replaced)


def gene_of(header: str) -> tuple[str, str]:
    """The gene that a header names, and the kind of header: UniProt (GN=), Ensembl (gene_symbol: or gene:), GENCODE (|), or plain."""
    if match := re.search(r"\bGN=(\S+)", header):
        return match[1], "UniProt"
    if match := re.search(r"\bgene_symbol:(\S+)", header) or re.search(r"\bgene:(\S+)", header):
        return match[1].split(".")[0] if ENSEMBL.match(match[1]) else match[1], "Ensembl"
    fields = header.split("|")
    if len(fields) >= 7 and any(ENSEMBL.match(field) for field in fields):
        return fields[6], "GENCODE"
    if header.startswith(("sp|", "tr|")) and len(fields) >= 3:  # UniProt, of a protein without a gene
        return "", "UniProt"
    return (header.split() or [""])[0], "plain"


def named(proteins: Proteins, wanted: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Wanted gene to the file's gene that it is, by name or through HGNC; and those that have no protein."""
    by_symbol: dict[str, list[str]] = {}
    for gene in proteins.of_gene:
        if symbol := gene_names().meaning(gene).symbol:
            by_symbol.setdefault(symbol, []).append(gene)
    found, missing = {}, []
    for gene in wanted:
        others = by_symbol.get(gene_names().meaning(gene).symbol or "", [])
        if gene in proteins.of_gene:
            found[gene] = gene
        elif len(others) == 1:
            found[gene] = others[0]
        else:
            missing.append(gene)
    return found, missing
