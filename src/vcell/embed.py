"""python -m vcell.embed: a table of gene vectors from protein sequences, by a protein language model (ESM2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    from pathlib import Path  # here, so that --help is answered at once

    from vcell.data.files.paths import read_gene_list
    from vcell.proteins.embed import EmbedOptions, embed, share_of_job

    shard, shards = share_of_job() if config.shards is None else (config.shard, config.shards)
    embed(
        EmbedOptions(
            fasta=config.fasta,
            out=Path(config.out).expanduser(),
            model=config.checkpoint,
            genes=read_gene_list(config.genes, "genes") if config.genes else None,
            batch_residues=config.batch_residues,
            window=config.window,
            overlap=config.overlap,
            device=config.device,
            precision=config.precision,
            shard=shard,
            shards=shards,
            overwrite=config.overwrite,
        )
    )


if __name__ == "__main__":
    import sys

    if not __package__:  # started as a file: its folder would hide Python's own `inspect`
        sys.path[0] = sys.path[0].removesuffix("vcell")
    from vcell.cli.main import main

    main("embed")
