"""python -m vcell.prepare: reads h5ad files once into a cell store."""

from __future__ import annotations

from omegaconf import DictConfig

from vcell.cli import launch
from vcell.data.prepare import ensure_store
from vcell.data.store import CellStore


def run(config: DictConfig) -> None:
    print(describe_store(ensure_store(config.data, config.overwrite)))


def describe_store(store: CellStore) -> str:
    """What a store holds, context by context."""
    obs = store.obs
    lines = [
        f"store        {store.path}",
        f"cells        {store.n_cells:,}, {store.n_genes:,} genes, {store.meta['stored_values']:,} counts above 0",
        f"library size {obs['library_size'].median():,.0f} counts a cell (median)",
    ]
    if store.meta["empty_cells_dropped"]:
        lines.append(f"dropped      {store.meta['empty_cells_dropped']:,} cells without any count")
    lines += [f"scale        {file}: {scale}" for file, scale in store.meta["scales"].items()]
    for context in store.contexts:
        cells = obs[obs["context"] == context]
        control = cells["perturbation"] == store.control
        lines.append(
            f"context      {context}: {len(cells):,} cells, {int(control.sum()):,} of them controls, "
            f"{cells.loc[~control, 'perturbation'].nunique():,} perturbations, {cells['batch'].nunique():,} batches"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    launch("prepare", run)
