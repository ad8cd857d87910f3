"""Our scores of two files, and nothing else: what `benchmarks/score.py` times. A file of its own, for it loads what scores need only.

python benchmarks/score_once.py 2025|2026 PRED.h5ad REAL.h5ad
"""

import json
import sys
from pathlib import Path

from vcell.score.cells import CellFile, Columns
from vcell.score.metrics import summary
from vcell.score.pairs import pairs
from vcell.score.scoring import SCORERS

year, pred, real = sys.argv[1:]
scorer = SCORERS["cell-eval" if year == "2025" else "cell-eval2"]
columns = Columns("target_gene", None, "non-targeting")
for pair in pairs(CellFile(Path(pred), columns, True), CellFile(Path(real), columns, True), columns, scorer.counts, []):
    fast = scorer.fast(pair.real)
    print(json.dumps(summary(fast.score(fast.side(pair.pred)), scorer.metrics)))
