"""Training groups that reveal held-out perturbations: under another symbol, or inside a multi-gene guide."""

from __future__ import annotations

from collections.abc import Iterable

from vcell.data.files.genes import gene_names
from vcell.data.splits import Group
from vcell.errors import VcellError, shortlist


def drop_leaks(assigned: dict[Group, str], leaks: str, known: Iterable[str] = ()) -> tuple[dict[Group, str], list[str]]:
    """The split without training groups that reveal a held-out one.

    A training group leaks where its label names every gene of a held-out perturbation, by whatever symbol, alone or
    among others (STAT1 held out, IRF1+STAT1 trained on), in a context where it is held out, or in any where it is held out
    everywhere. The other way round is no leak: single perturbations may train for a held-out double one.

    Parameters
    ----------
    leaks
        ``refuse``, ``drop`` or ``allow``.
    known
        Gene names beyond HGNC's.

    Returns
    -------
    The split, and what to tell the user.

    Raises
    ------
    VcellError
        Naming the leaks, when they are refused.
    """
    if leaks not in ("refuse", "drop", "allow"):
        raise VcellError(f"data.split.leaks={leaks} must be refuse, drop or allow")
    found = find_leaks(assigned, known)
    if not found or leaks == "allow":
        return assigned, [
            f"{len(found):,} training groups name held-out genes (data.split.leaks=allow)"
        ] if found else []
    listed = shortlist([f"{trained[1]} ({trained[0]}) reveals {held[1]}" for trained, held in found.items()], 6)
    if leaks == "drop":
        kept = {group: split for group, split in assigned.items() if group not in found}
        if "train" not in kept.values():
            raise VcellError(f"without the leaking groups nothing is left to train on: {listed}")
        return kept, [f"{len(found):,} training groups that reveal held-out perturbations are left out: {listed}"]
    raise VcellError(
        f"{len(found):,} training groups reveal held-out perturbations: {listed}. Leave them out of training with "
        "data.split.leaks=drop (data.split.leaks=allow trains on them anyway)"
    )


def find_leaks(assigned: dict[Group, str], known: Iterable[str] = ()) -> dict[Group, Group]:
    """Training groups that name the genes of a held-out group: the former to one of the latter."""
    names, known = gene_names(), frozenset(known)
    genes = {p: [set(names.meaning(t).genes) for t in names.targets(p, known)] for _, p in assigned}
    trained_as_is = {p for (_, p), split in assigned.items() if split == "train"}
    by_gene: dict[str, list[Group]] = {}  # held-out groups by each of the genes they may mean
    for group, split in assigned.items():
        if split != "train":
            for gene in set().union(*genes[group[1]]):
                by_gene.setdefault(gene, []).append(group)
    leaks = {}
    for group, split in assigned.items():
        if split != "train":
            continue
        candidates = dict.fromkeys(
            h for some in genes[group[1]] for gene in sorted(some) for h in by_gene.get(gene, ())
        )
        for held in candidates:
            applies = held[0] == group[0] or held[1] not in trained_as_is
            same_label = held[1] == group[1]  # the split's own doing: held out here, trained there
            if applies and not same_label and all(any(a & b for b in genes[group[1]]) for a in genes[held[1]]):
                leaks[group] = held
                break
    return leaks
