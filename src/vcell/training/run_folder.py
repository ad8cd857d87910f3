"""A run's folder: started, continued, or refused."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vcell.atomic import write_text
from vcell.config import RECORD, differences, may_change
from vcell.errors import VcellError, shortlist
from vcell.model.checkpoint import read_checkpoint
from vcell.records.listing import read_config
from vcell.training.resuming import INSTEAD, check_resumable


@dataclass(frozen=True)
class RunFolder:
    """`runs/NAME`: its configuration, checkpoints/, metrics.csv, curves.png and .html, run.json and train.log."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint_to_continue(
        self, config: dict[str, Any], resume: str, overwrite: bool, trains: bool = True
    ) -> Path | None:
        """The checkpoint to continue from, or None for a run that starts. Changes nothing.

        Parameters
        ----------
        config
            The resolved configuration.
        resume
            ``auto`` continues a run that is there; ``never`` refuses to.
        overwrite
            The run that is there will make way for a new one.
        trains
            Steps will be taken from there; False for what is fitted, and has no steps.

        Raises
        ------
        VcellError
            If a run of this name has another configuration, or `resume` is ``never`` and there is one.
        """
        if resume not in ("auto", "never"):
            raise VcellError(f"resume={resume} must be auto or never")
        if overwrite or not self._to_continue():
            return None
        if resume == "never":
            raise VcellError(
                f"{self.path} already holds a run and resume=never was given: choose another name=NAME, or "
                "overwrite=true to remove it"
            )
        self._check_same(config)
        return self._newest_sound(trains)

    def begin(self, config: dict[str, Any], overwrite: bool) -> None:
        """Makes the folder of a run that starts, and writes its configuration there."""
        if overwrite:
            self._remove()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            write_text(self.path / RECORD, OmegaConf.to_yaml(OmegaConf.create(config)))
        except OSError as error:
            raise VcellError(f"the run folder {self.path} cannot be written: {error}") from error

    def clear_leftovers(self) -> None:
        """Removes half-written files of a run that was killed."""
        for pattern in ("checkpoints/*.tmp.ckpt", "*.tmp.csv", "*.tmp.png", "*.tmp.html", "*.tmp.yaml", "*.tmp.json"):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)

    def discard_if_empty(self) -> None:
        """Removes the folder of a run that failed before anything of it was saved."""
        if not list(self.checkpoints.glob("*.ckpt")):
            shutil.rmtree(self.path, ignore_errors=True)

    def _remove(self) -> None:
        if not self.path.exists():
            return
        if any(self.path.iterdir()) and not (self.path / RECORD).is_file():
            raise VcellError(
                f"{self.path} is not a run's folder (it has no {RECORD}); it was not changed. Set name=NAME"
            )
        shutil.rmtree(self.path)

    def _check_same(self, config: dict[str, Any]) -> None:
        if not (self.path / RECORD).is_file():
            raise VcellError(f"{self.path} holds checkpoints but no {RECORD}; choose another name=NAME")
        differing = [
            f"{key} ({old} then, {new} now)"
            for key, (old, new) in differences(self._config(), config).items()
            if not may_change("train", key)
        ]
        if differing:
            raise VcellError(
                f"the run {self.path} was started with another configuration: {shortlist(differing, 12)}. Use the same "
                "one to continue it, name=NEW_NAME to start another, or overwrite=true to restart this one"
            )

    def _config(self) -> dict[str, Any]:
        """The configuration that the run was begun with."""
        found = read_config(self.path)
        if not {"data", "model", "trainer"} <= found.keys():
            raise VcellError(
                f"{self.path / RECORD} is damaged: it holds no configuration. Start another run with name=NEW_NAME"
            )
        return found

    def _to_continue(self) -> list[Path]:
        """Checkpoints that a run can be continued from: last.ckpt, then the best ones, newest first."""
        last = self.checkpoints / "last.ckpt"
        best = sorted(self.checkpoints.glob("best*.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True)
        return [*([last] if last.is_file() else []), *best]

    def _newest_sound(self, trains: bool) -> Path:
        """last.ckpt, or where that is damaged the newest that is not."""
        for path in self._to_continue():
            try:
                checkpoint = read_checkpoint(path)
                if trains:
                    check_resumable(checkpoint, path)
                return path
            except VcellError as error:
                print(f"{error}; trying the next", flush=True)
        raise VcellError(f"no checkpoint of {self.path} can be continued from. {INSTEAD}")
