"""Commands load of torchmetrics what Lightning uses, and all of it for whoever asks."""

import subprocess
import sys

SCRIPT = """
import sys
import vcell.training
import lightning.pytorch
heavy = [name for name in ("torchmetrics.functional", "transformers", "scipy.signal", "matplotlib") if name in sys.modules]
import torchmetrics
from torchmetrics.regression import MeanSquaredError
metric = torchmetrics.MeanMetric()
metric.update(2.0)
print(heavy, float(metric.compute()), issubclass(MeanSquaredError, torchmetrics.Metric), hasattr(torchmetrics, "no_such_name"))
"""


def test_lightning_starts_without_the_metrics_that_nobody_uses() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "[] 2.0 True False"
