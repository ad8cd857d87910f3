"""python -m vcell.genes: what gene names mean: symbols of today and before, aliases, Ensembl ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(config: DictConfig) -> None:
    import json  # here, so that --help is answered at once

    from vcell.config import plain
    from vcell.errors import VcellError, nearest
    from vcell.inspection import names

    if config.do not in names.DEEDS:
        raise VcellError(
            f"vcell genes {config.do}: it has {', '.join(names.DEEDS)}.{nearest(str(config.do), names.DEEDS)}"
        )
    if config.do == "update":
        print(names.update(names.needed(config.path, "the file to read: vcell genes update hgnc_complete_set.txt")))
        return
    if config.do == "lookup":
        asked = [str(name) for name in plain(config.names)]
        found = names.looked_up(names.needed(asked, "names to look up: vcell genes lookup QARS TAZ"))
        text = names.as_lines(found)
    else:
        path = names.needed(config.path, "the file to check: vcell genes check gene_names.csv")
        found = names.looked_up(names.names_of(path))
        text = names.summary(path, found)
    if config.out:
        names.write_csv(found, config.out)
    print(json.dumps(found.to_dict("records"), indent=1) if config.json else text)


if __name__ == "__main__":
    import sys

    if not __package__:  # started as a file: its folder would hide Python's own `inspect`
        sys.path[0] = sys.path[0].removesuffix("vcell")
    from vcell.cli.main import main

    main("genes")
