"""The cell store: the counts of a data set read once, opened in milliseconds."""

from vcell.data.store.store import Cells, CellStore, SparseCells

__all__ = ["CellStore", "Cells", "SparseCells"]
