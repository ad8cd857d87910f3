"""Training: it learns, it resumes exactly, it survives being killed, and it refuses to mix runs."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import SMALL, Command, assert_refused, start, train_here, val_rows, wait_for
from vcell.config import compose
from vcell.data.batch import CellSetBatch
from vcell.data.gather import Gather
from vcell.data.sampler import CellSetSampler
from vcell.data.store.store import CellStore
from vcell.errors import VcellError
from vcell.model.checkpoint import read_checkpoint
from vcell.model.losses import SetLoss
from vcell.model.trained import TrainedModel
from vcell.records.metrics import read_metrics
from vcell.training import effects
from vcell.training.module import TransitionModule
from vcell.training.saving import KeepLast
from vcell.training.validation import ValidationScores

STEPS_TO_KILL = 36
LAST = Path("runs/demo/checkpoints/last.ckpt")


def weights(path: Path = LAST) -> dict[str, torch.Tensor]:
    return read_checkpoint(path)["state_dict"]


def test_a_run_leaves_what_it_promises(in_trained: Path):
    run = Path("runs/demo")
    assert {p.name for p in run.iterdir()} == {
        "config.yaml", "split.json", "checkpoints", "metrics.csv", "curves.png", "curves.html", "run.json", "train.log",
    }  # fmt: skip
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    rows = read_metrics(run / "metrics.csv")
    assert {"train/loss", "train/energy", "val/loss", "val/delta_correlation", "train/learning_rate"} <= {
        k for r in rows for k in r
    }
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_resume_equals_no_interruption(fresh: Path, precision: str):
    # dropout, so that random numbers count
    options = [
        "model.dropout=0.2",
        "model.decoder_layers=2",
        "trainer.val_check_interval=7",
        f"trainer.precision={precision}",
    ]
    train_here(*options, "trainer.max_steps=16", "schedule.decay=constant")
    whole = weights()
    shutil.rmtree("runs")
    train_here(*options, "trainer.max_steps=9", "schedule.decay=constant")
    assert read_checkpoint(LAST)["global_step"] == 9
    train_here(*options, "trainer.max_steps=16", "schedule.decay=constant")
    resumed = weights()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def same_weights(a: Path, b: Path) -> bool:
    a_weights, b_weights = weights(a), weights(b)
    return a_weights.keys() == b_weights.keys() and all(torch.equal(a_weights[k], b_weights[k]) for k in a_weights)


def test_resume_keeps_averaged_weights_and_best_scores(fresh: Path):
    options = ["callbacks=[default,average]", "callbacks.average.decay=0.8", "callbacks.last.every_n_steps=4",
               "callbacks.best.monitor=[val/mae,val/discrimination]", "trainer.val_check_interval=3", "schedule.decay=constant"]  # fmt: skip
    train_here(*options, "trainer.max_steps=14", "name=whole")
    for steps in (5, 8, 14):
        train_here(*options, f"trainer.max_steps={steps}", "name=parts")
    whole, parts = (read_checkpoint(Path(f"runs/{name}/checkpoints/last.ckpt")) for name in ("whole", "parts"))
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(whole[key][k], parts[key][k]) for k in whole[key])
    assert any(not torch.equal(whole["state_dict"][k], v) for k, v in whole["current_model_state"].items())
    for file in ("best.ckpt", "best_discrimination.ckpt"):
        chosen = [
            read_checkpoint(Path(f"runs/{n}/checkpoints/{file}"))["vcell"]["chosen_for"] for n in ("whole", "parts")
        ]
        assert chosen[0] == chosen[1]


def test_a_best_checkpoint_is_of_the_step_whose_score_it_carries(fresh: Path):
    monitor = ["val/discrimination", "val/mae", "val/de_overlap", "val/delta_correlation"]
    options = [
        "trainer.val_check_interval=4",
        "data.split.val.perturbations=0.4",
        f"callbacks.best.monitor=[{','.join(monitor)}]",
    ]
    train_here(*options, "trainer.max_steps=24", "optimizer.lr=0.02")
    found = val_rows("runs/demo")
    for i, name in enumerate(monitor):
        best = max if name != "val/mae" else min
        file = Path("runs/demo/checkpoints") / ("best.ckpt" if i == 0 else f"best_{name.split('/')[1]}.ckpt")
        checkpoint = read_checkpoint(file)
        chosen = checkpoint["vcell"]["chosen_for"]
        assert chosen["score"] == name and chosen["step"] == checkpoint["global_step"]
        assert chosen["value"] == pytest.approx(found[chosen["step"]][name], rel=1e-6)
        assert chosen["value"] == pytest.approx(best(row[name] for row in found.values()), rel=1e-6)
    # and its weights are those that got it
    assert score_again(Path("runs/demo/checkpoints/best_mae.ckpt"))["mae"] == pytest.approx(
        chosen_value("best_mae"), rel=1e-4
    )


def chosen_value(name: str) -> float:
    return read_checkpoint(Path(f"runs/demo/checkpoints/{name}.ckpt"))["vcell"]["chosen_for"]["value"]


def score_again(path: Path) -> dict[str, float]:
    """Scores of a checkpoint on its run's validation sets, without a trainer."""
    module = TrainedModel.load(path)
    store = CellStore.open(module.identity.store["paths"][0])
    gather = Gather(store, module.identity.target_sum)
    groups = [(c, p) for c, p, split in module.identity.split if split == "val"]
    scores, loss = ValidationScores(store.genes), SetLoss({"energy": 1.0})
    for sets in CellSetSampler(store, groups, 8, 4).validation():
        batch = gather.to_device(gather.fetch(sets))
        with torch.no_grad():
            scores.add(batch, module.predict(batch), loss)
    return scores.compute(loss)


def test_an_unknown_score_to_choose_by_is_refused(fresh: Path):
    with pytest.raises(VcellError, match=r"names 'val/descrimination'.*Did you mean 'val/discrimination'"):
        train_here("callbacks.best.monitor=val/descrimination")  # before a single step
    assert not Path("runs/demo/checkpoints/last.ckpt").exists()


def test_training_stops_early_when_the_score_stops_improving(fresh: Path, capsys: pytest.CaptureFixture[str]):
    options = [
        "callbacks=[default,early_stopping]",
        "callbacks.early_stopping.patience=2",
        "trainer.val_check_interval=2",
    ]
    for _ in range(2):  # and the same command does not take it up again
        train_here(*options, "trainer.max_steps=200", "optimizer.lr=0")  # nothing can improve
        assert read_checkpoint(LAST)["global_step"] == 6
    assert "stopped early: val/discrimination has not been better" in capsys.readouterr().out


def test_predictions_that_are_all_alike_are_warned_of(fresh: Path, capsys: pytest.CaptureFixture[str]):
    # a one-hot table knows nothing of perturbations that are held out everywhere
    blind = ["perturbation.path=null", "data.split.val.perturbations=0.3", "data.split.val.within=null"]
    options = ["trainer.val_check_interval=8", "trainer.max_steps=16", "schedule.warmup_steps=5", "optimizer.lr=0.01"]
    options += ["validation.differential_expression=false"]
    train_here(*options, *blind, "name=blind")
    said = capsys.readouterr().out
    assert said.count("nearly identical") == 1 and "perturbation.path=TABLE.pt" in said
    assert not any("val/de_overlap" in row for row in read_metrics(Path("runs/blind/metrics.csv")))
    train_here(*options, "data.split.val.perturbations=0.3")
    assert "nearly identical" not in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_with_its_set_and_the_weights_before(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
):
    options = ["trainer.val_check_interval=100", "callbacks.last.every_n_steps=100", "model.dropout=0.2"]
    train_here(*options, "trainer.max_steps=6", "name=before", "schedule.decay=constant")
    seen = []

    def poisoned(loss: SetLoss, predicted_SCG: torch.Tensor, batch: CellSetBatch) -> dict[str, torch.Tensor]:
        if torch.is_grad_enabled():
            seen.append(batch)
        bad = torch.tensor([0, 0, torch.nan, 0]).view(4, 1, 1) if len(seen) == 7 else 0
        return forward(loss, predicted_SCG + bad, batch)

    forward = SetLoss.forward
    monkeypatch.setattr(SetLoss, "forward", poisoned)
    with pytest.raises(VcellError) as refused:
        train_here(*options, "trainer.max_steps=20", "schedule.decay=constant")
    bad = f"{seen[6].perturbations[2]} in {seen[6].contexts[2]}"
    assert f"loss of step 7 is not finite in set 2 ({bad})" in str(refused.value)
    rescued = Path("runs/demo/checkpoints/before_nonfinite.ckpt")
    assert str(rescued) in str(refused.value)
    assert same_weights(rescued, Path("runs/before/checkpoints/last.ckpt"))
    monkeypatch.setattr(SetLoss, "forward", forward)
    train_here("init_from=" + str(rescued), "name=after", "trainer.max_steps=1", "model.dropout=0.2")


def test_a_gradient_that_is_not_finite_stops_too(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    step = TransitionModule.training_step
    monkeypatch.setattr(TransitionModule, "training_step", lambda *a: step(*a) * torch.inf)
    with pytest.raises(VcellError, match="the gradient of step 1 is not finite"):
        train_here("trainer.max_steps=3")


def test_check_says_what_a_run_will_take_and_begins_nothing(fresh: Path, capsys: pytest.CaptureFixture[str]):
    train_here("check=true", "data.split.val.perturbations=0.2")
    said = capsys.readouterr().out
    for words in (
        "train ",
        "val ",
        "train in other contexts",
        "FLOP per step",
        "weights, gradients and optimiser",
        "s per step",
        "in total",
    ):
        assert words in said
    assert not Path("runs").exists()


def test_throughput_is_logged(in_trained: Path):
    rows = [row for row in read_metrics(Path("runs/demo/metrics.csv")) if "throughput/cells_per_second" in row]
    assert len(rows) == 8  # every fifth of 40 steps
    for row in rows:
        assert row["throughput/cells_per_second"] > 0 and 0 <= row["throughput/data_wait"] <= 1
        assert row["throughput/peak_memory_gb"] > 0.1


def test_accumulated_steps_equal_larger_ones(fresh: Path):
    same = ["trainer.max_steps=5", "trainer.val_check_interval=1000", "model.dropout=0"]
    train_here(*same, "data.sets.sets_per_step=4", "name=large")
    train_here(*same, "data.sets.sets_per_step=2", "trainer.accumulate_grad_batches=2", "name=small")
    large, small = (weights(Path(f"runs/{name}/checkpoints/last.ckpt")) for name in ("large", "small"))
    for name, weight in large.items():
        torch.testing.assert_close(small[name], weight, atol=1e-6, rtol=1e-4)


def test_a_compiled_model_trains_to_the_same_weights(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    same = ["trainer.max_steps=3", "trainer.val_check_interval=1000", "model.layers=1"]
    train_here(*same, "name=plain")
    compile_ = torch.nn.Module.compile  # traced, but without the minute that a C++ compiler takes
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, mode: compile_(module, backend="aot_eager"))
    train_here(*same, "name=compiled", "compile=true")
    plain, compiled = (weights(Path(f"runs/{name}/checkpoints/last.ckpt")) for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(compiled[name], weight, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_like_one_never_killed(fresh: Path, capsys: pytest.CaptureFixture[str]):
    options = [
        "model.dropout=0.2",
        "model.decoder_layers=2",
        "callbacks.last.every_n_steps=3",
        "trainer.val_check_interval=12",
    ]
    length = f"trainer.max_steps={STEPS_TO_KILL}"
    train_here(*options, length, "name=whole")
    seconds = random.Random(os.environ.get("VCELL_SEED", "0"))
    killed, last = 0, fresh / "runs/killed/checkpoints/last.ckpt"
    wanted = int(os.environ.get("VCELL_KILLS", "1"))  # 20 before a release
    while killed < wanted:
        before = read_checkpoint(last)["global_step"] if last.exists() else 0
        began = time.time()
        process = start(fresh, *options, length, "name=killed")
        until = time.monotonic() + 120
        while process.poll() is None and not (last.exists() and last.stat().st_mtime > began):
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(seconds.uniform(0, 0.2))  # training and saving by now
        process.kill()
        process.communicate()
        killed += 1
        step = read_checkpoint(last)["global_step"]  # whole, whenever the kill came
        assert step >= before
        if step == STEPS_TO_KILL:
            assert same_weights(fresh / "runs/whole/checkpoints/last.ckpt", last)
            shutil.rmtree(fresh / "runs/killed")
    train_here(*options, length, "name=killed")
    assert f"{last.relative_to(fresh)} " in capsys.readouterr().out and not list(last.parent.glob("*.tmp*"))
    assert same_weights(fresh / "runs/whole/checkpoints/last.ckpt", last)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_every_signal_saves_and_ends_with_its_code(
    name: str, fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    number, step = signal.Signals[name], TransitionModule.training_step

    def asked(module: TransitionModule, *args: object) -> torch.Tensor:
        if module.trainer.global_step == 4:
            os.kill(os.getpid(), number)
        return step(module, *args)

    monkeypatch.setattr(TransitionModule, "training_step", asked)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    queued: list[list[str]] = []
    monkeypatch.setattr(
        "vcell.process.stopping.subprocess",
        SimpleNamespace(
            run=lambda command, **_: queued.append(command) or SimpleNamespace(returncode=0, stdout="JobState=RUNNING")
        ),
    )
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        train_here("trainer.max_steps=100", "trainer.val_check_interval=50")
    assert stopped.value.code == 128 + number and read_checkpoint(LAST)["global_step"] == 5
    assert f"stopped by {name}, saved at step 5" in capsys.readouterr().err
    assert [c for c in queued if c[1] == "requeue"] == ([["scontrol", "requeue", "77"]] if "USR" in name else [])
    assert signal.getsignal(number) == before


def test_a_kill_right_after_saving_loses_no_row_and_no_validation(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    options = [
        "trainer.val_check_interval=3",
        "trainer.log_every_n_steps=1",
        "callbacks.last.every_n_steps=3",
        "schedule.decay=constant",
    ]
    train_here(*options, "trainer.max_steps=9", "name=whole")
    save = KeepLast._save

    def killed(self: KeepLast, trainer: object, between_steps: bool = True) -> None:
        save(self, trainer, between_steps)  # type: ignore[arg-type]
        if self.saved_step == 6:
            raise SystemExit(137)

    with monkeypatch.context() as patched:
        patched.setattr(KeepLast, "_save", killed)
        with pytest.raises(SystemExit):
            train_here(*options, "trainer.max_steps=9", "name=parts")
    train_here(*options, "trainer.max_steps=9", "name=parts")
    whole, parts = (
        [
            {k: v for k, v in row.items() if not k.startswith("throughput")}
            for row in read_metrics(Path(f"runs/{n}/metrics.csv"))
        ]
        for n in ("whole", "parts")
    )
    for one, other in zip(whole, parts, strict=True):
        assert one == other
    assert sorted(val_rows("runs/parts")) == [3, 6, 9]
    chosen = [
        read_checkpoint(Path(f"runs/{n}/checkpoints/best.ckpt"))["vcell"]["chosen_for"] for n in ("whole", "parts")
    ]
    assert chosen[0] == chosen[1]


def test_a_trainer_named_on_the_command_line_wins_over_the_experiment():
    assert compose("train", ["experiment=demo", "trainer=debug"]).trainer.max_steps == 20
    assert compose("train", ["trainer=debug", "experiment=h1_replogle", "trainer.max_steps=7"]).trainer.max_steps == 7
    assert compose("train", ["experiment=demo", "trainer=cpu"]).trainer.max_steps == 1000


@pytest.mark.slow
@pytest.mark.parametrize("asked", [signal.SIGUSR1])
def test_a_run_asked_to_stop_saves_first(asked: signal.Signals, fresh: Path):
    scontrol = fresh / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $@ > {fresh}/requeued\n")
    scontrol.chmod(0o755)
    job = {"SLURM_JOB_ID": "77", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    process = start(fresh, "callbacks.last.every_n_steps=20", "trainer.max_steps=100000", **job)
    wait_for(fresh / LAST, process)
    process.send_signal(asked)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + asked, said
    # SIGUSR1 is SLURM's warning before the end; SIGTERM may be the user's own word
    assert (fresh / "requeued").exists() == (asked == signal.SIGUSR1)
    if asked == signal.SIGUSR1:
        assert (fresh / "requeued").read_text() == "requeue 77\n"
    saved = int(re.search(r"saved at step ([\d,]+)", said)[1].replace(",", ""))  # type: ignore[index]
    assert read_checkpoint(fresh / LAST)["global_step"] == saved


def test_a_finished_run_is_left_as_it_is_and_its_prior_not_fitted(
    in_trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    before = LAST.stat().st_mtime_ns
    monkeypatch.setattr(effects, "fit_prior", None)
    train_here("trainer.max_steps=40", "trainer.val_check_interval=20", "trainer.log_every_n_steps=5")
    assert "at step 40 already" in capsys.readouterr().out and LAST.stat().st_mtime_ns == before


def test_another_configuration_is_refused_by_its_keys(in_trained: Path):
    with pytest.raises(VcellError, match=r"optimizer\.lr \(0\.001 then, 0\.01 now\).*seed \(0 then, 5 now\)"):
        train_here("optimizer.lr=0.01", "seed=5", "trainer.val_check_interval=20")
    with pytest.raises(VcellError, match="resume=never"):
        train_here("resume=never", "trainer.val_check_interval=20")


def test_overwrite_begins_anew(fresh: Path):
    train_here("trainer.max_steps=3")
    train_here("trainer.max_steps=2", "seed=1", "overwrite=true")
    assert read_checkpoint(LAST)["global_step"] == 2


def test_a_damaged_last_checkpoint_falls_back_on_a_sound_one(fresh: Path, capsys: pytest.CaptureFixture[str]):
    options = ["trainer.val_check_interval=4", "trainer.max_steps=6"]
    train_here(*options)
    LAST.write_bytes(LAST.read_bytes()[:1000])
    train_here(*options)
    said = capsys.readouterr().out
    assert "damaged" in said and "best.ckpt at step 4" in said
    assert read_checkpoint(LAST)["global_step"] == 6


def test_a_checkpoint_of_weights_alone_is_not_continued_from(fresh: Path, capsys: pytest.CaptureFixture[str]):
    train_here("trainer.max_steps=4", "trainer.val_check_interval=4")
    best = LAST.with_name("best.ckpt")
    sound = read_checkpoint(LAST)

    def save(path: Path, **changed: Any) -> None:
        torch.save({**sound, **changed}, path)

    for part in ("optimizer_states", "loops", "global_step"):
        save(LAST, **{part: None})
        train_here("trainer.max_steps=4", "trainer.val_check_interval=4")
        said = capsys.readouterr().out
        assert f"its {part} is missing or damaged" in said and "best.ckpt" in said
    save(LAST, optimizer_states=[])
    save(best, optimizer_states=[])
    with pytest.raises(VcellError, match="no checkpoint of runs/demo can be continued from"):
        train_here("trainer.max_steps=8", "trainer.val_check_interval=4")


def test_what_does_not_fit_the_network_is_said_before_a_step(fresh: Path):
    train_here("trainer.max_steps=4", "trainer.val_check_interval=4")
    sound = read_checkpoint(LAST)
    first = next(iter(sound["state_dict"]))
    small = torch.zeros(3)
    for path, words in (
        (("state_dict", first), "size mismatch"),
        (("optimizer_states", 0, "state", 0, "exp_avg"), "exp_avg of"),
        (("optimizer_states", 0, "param_groups"), "parameter groups"),
    ):
        damaged = deepcopy(sound)
        inner: Any = damaged
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = [] if path[-1] == "param_groups" else small
        torch.save(damaged, LAST)
        with pytest.raises(VcellError, match=f"training cannot continue from .*{words}"):
            train_here("trainer.max_steps=8", "trainer.val_check_interval=4")


def test_bad_data_leaves_no_run_behind(fresh: Path):
    torch.save({"GENE0001": torch.ones(12)}, "small.pt")
    with pytest.raises(VcellError, match="lacks"):
        train_here("perturbation.path=small.pt")
    with pytest.raises(VcellError, match="NOPE"):
        train_here("data.split.test.perturbations=[NOPE]")
    assert not Path("runs").exists()


def test_one_hot_says_what_it_cannot_know(fresh: Path, capsys: pytest.CaptureFixture[str]):
    train_here("perturbation.path=null", "data.split.val.within=null", "trainer.max_steps=2")
    said = capsys.readouterr().out
    assert "one-hot: 20 perturbations" in said and "held out everywhere" in said


def test_wandb_works_offline_without_an_account(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    train_here("logger=wandb", "logger.wandb.offline=true", "trainer.max_steps=3", "trainer.log_every_n_steps=1")
    assert list(Path("runs/demo/wandb").glob("offline-run-*")) and Path("runs/demo/metrics.csv").exists()


@pytest.mark.slow
def test_a_sweep_trains_run_after_run(fresh: Path, vcell: Command):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    sweep = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "name=s${hydra:job.num}", "seed=3,4"]
    done = vcell("train", "-m", "experiment=demo", "trainer=cpu", *SMALL, *sweep, "trainer.max_steps=2", cwd=fresh)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(read_checkpoint(Path(f"runs/s{seed}/checkpoints/last.ckpt"))["global_step"] == 2 for seed in (0, 1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_trains_in_bf16(fresh: Path, vcell: Command):
    done = vcell("train", "experiment=demo", *SMALL, "trainer=gpu", "trainer.max_steps=5", cwd=fresh)
    assert done.returncode == 0, done.stderr


def test_dropout_is_a_function_of_seed_step_and_rank():
    drawn: dict[tuple, set[float]] = {}
    batch = CellSetBatch(["A"], ["P"], torch.zeros(1, 1, 1), None)
    for seed, step, rank in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        module = SimpleNamespace(
            seed=seed, trainer=SimpleNamespace(accumulate_grad_batches=1, global_step=step, global_rank=rank)
        )
        for _ in range(2):
            TransitionModule.on_train_batch_start(module, batch, 0)
            drawn.setdefault((seed, step, rank), set()).add(float(torch.rand(1)))
    assert all(len(values) == 1 for values in drawn.values()) and len(set.union(*drawn.values())) == 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.sets.set_size=0", r"data\.sets\.set_size=0 must be"),
        ("data.target_sum=mean", r"data\.target_sum=mean"),
        ("loss.weights.energy=0", "no term"),
        ("optimizer.lr=-1", r"optimizer\.lr=-1 must be a number of at least 0"),
        ("optimizer.fused=text", r"optimizer\.fused=text must be one of auto, true, false, null"),
        ("callbacks.last=null", r"without callbacks\.last a run leaves no checkpoint"),
        ("callbacks.last.share=null", r"callbacks\.last\.share=null must be a number above 0"),
        ("callbacks.best.monitor=null", r"callbacks\.best\.monitor names no score"),
        ("callbacks.best.monitor=3", r"callbacks\.best\.monitor names '3'; validation gives val/loss"),
        ("trainer.num_nodes=2", "started on one machine alone"),
        ("+trainer.limit_train_batches=0", "ended before its first step"),
        ("model.heads=half", r"model\.heads=half must be a whole number from 1 to 1,000,000"),
    ],
)
def test_impossible_values_are_refused(override: str, words: str, fresh: Path):
    with pytest.raises(VcellError, match=words):
        train_here(override)
    assert not Path("runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_is_said_so(fresh: Path):
    with pytest.raises(VcellError, match="trainer=cpu"):
        train_here("trainer=gpu")


def test_mistakes_end_with_code_2(fresh: Path, vcell: Command):
    shutil.copytree("data/demo/store", "elsewhere/store")
    (fresh / "elsewhere" / "store" / "meta.json").write_text("{")
    done = vcell("train", "experiment=demo", *SMALL, "data.store=elsewhere/store", cwd=fresh)
    assert_refused(done, "elsewhere/store is damaged")


def test_excluded_perturbations_train_nothing(fresh: Path):
    first = sorted({p for c, p in CellStore.open("data/demo/store").groups if p != "non-targeting"})[0]
    train_here(f"data.exclude=[{first}]", "data.split.val.perturbations=0.2", "trainer.max_steps=1")
    assert first not in {p for _, p, _ in read_checkpoint(LAST)["vcell"]["split"]}
    with pytest.raises(VcellError, match=r"data\.exclude names NOPE"):
        train_here("data.exclude=[NOPE]", "name=other")


def test_curves_go_to_tensorboard_and_mlflow_too(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("tensorboard")
    mlflow, _ = pytest.importorskip("mlflow"), pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{fresh}/mlflow.db")
    short = ["trainer.max_steps=3", "trainer.log_every_n_steps=1", "trainer.val_check_interval=3"]
    train_here("logger=tensorboard", "name=tb", *short)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(fresh / "runs" / "tb" / "tensorboard")).Reload()
    assert [point.step for point in read.Scalars("train/loss")] == [0, 1, 2]
    train_here("logger=mlflow", "name=ml", *short)
    [run] = mlflow.MlflowClient(f"sqlite:///{fresh}/mlflow.db").search_runs(["1"])
    assert run.info.run_name == "ml" and run.data.params["optimizer/lr"] and "val/loss" in run.data.metrics


def test_a_logger_that_is_not_installed_is_said_at_once(fresh: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vcell.training.environment.importlib.util.find_spec", lambda name: None)
    with pytest.raises(VcellError, match=r"logger=tensorboard needs tensorboard: "):
        train_here("logger=tensorboard", "name=tb")
    assert not (fresh / "runs" / "tb").exists()
