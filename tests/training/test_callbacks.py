from pathlib import Path

from vcell.records.metrics import read_metrics
from vcell.training.curves import CsvLogger, plot_curves


def test_metrics_go_on_where_a_resumed_run_goes_on(tmp_path: Path):
    first = CsvLogger(str(tmp_path))
    for step in range(5):
        first.log_metrics({"train/loss": 1.0 + step}, step)
    resumed = CsvLogger(str(tmp_path))
    resumed.log_metrics({"train/loss": 9.0}, 3)
    resumed.log_metrics({"val/loss": 8.0}, 3)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[2]["train/loss"] == 3.0 and rows[3] == {"step": 3, "train/loss": 9.0, "val/loss": 8.0}


def test_curves_are_drawn(tmp_path: Path):
    logger = CsvLogger(str(tmp_path))
    logger.log_metrics({"train/loss": 1.0}, 0)
    logger.log_metrics({"val/loss": 1.0}, 1)
    plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
