"""The transfer prior and a small network that may add to it: attention over what other contexts measured of a target.

The network's output is a low-rank change of the prior's effect, 0 before training. It learns as it will be used: each training context in
turn is predicted from the others, whole studies left out at random. How much of its output is used is chosen by leaving out one context at a
time, with response basis, centring and weights made anew without it (the prior's few settings and scales are those of all contexts); where that
shows no gain beyond its standard error, none is.

Shape legend: T targets, E pieces of evidence of a target, K components of the response basis, G genes, D hidden, H dimensions of a sketch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from vcell.effects.bank import SPACES
from vcell.effects.controls import ContextControls
from vcell.effects.evidence import Evidence
from vcell.effects.linear import cosine, main_directions
from vcell.effects.loco import FEWEST_TARGETS, judged, worth
from vcell.effects.transfer import Transfer
from vcell.errors import check_choice, check_number
from vcell.process.progress import progress_bar

SKETCH = 1024
TRAITS = 4  # of a piece of evidence: reliability, size, likeness of controls, agreement with the other studies
TEMPERATURE = 0.02
BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)
LOSSES = ("cosine", "l1")
FEWEST_CONTEXTS = 3


class Attention(nn.Module):
    """From evidence about a target to a change of its effect in the response basis, ``(T, K)``; 0 before training.

    It can do two things, both linear in what was measured, so that the few hundred noisy responses of a screen can teach them: weigh the
    studies by what they are (reliability, size, likeness of their control cells, agreement with the others), and weigh the components of
    the basis.

    Parameters
    ----------
    traits
        Numbers that describe a piece of evidence besides its response.
    query
        Width of a query.
    components
        Of the response basis.
    hidden
        Width of the attention.
    """

    def __init__(self, traits: int, query: int, components: int, hidden: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(traits, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.gain_K = nn.Parameter(torch.zeros(components))
        self.from_query = nn.Linear(query, components, bias=False) if query else None
        for last in (self.score[-1], self.from_query):
            if isinstance(last, nn.Linear):
                nn.init.zeros_(last.weight)
        last = self.score[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.bias)

    def forward(self, evidence_TEF: Tensor, there_TE: Tensor, query_TF: Tensor, prior_TK: Tensor) -> Tensor:
        components = prior_TK.shape[1]
        traits_TEF, response_TEK = evidence_TEF[..., components:], evidence_TEF[..., :components]
        score_TE = self.score(traits_TEF).squeeze(-1)
        weight_TE, equal_TE = (
            score.masked_fill(~there_TE, torch.finfo(score.dtype).min).softmax(-1) * there_TE
            for score in (score_TE, torch.zeros_like(score_TE))
        )
        reweighed_TK = ((weight_TE - equal_TE).unsqueeze(-1) * response_TEK).sum(1)
        found: Tensor = reweighed_TK * (1 + self.gain_K) + prior_TK * self.gain_K
        return found if self.from_query is None else found + self.from_query(query_TF)


@dataclass(frozen=True)
class Basis:
    """The main directions of measured responses: ``(K, G)`` by space, orthonormal in the space ``bulk``."""

    axes: Mapping[str, np.ndarray]
    size: float  # root mean square of a response's coordinates

    @classmethod
    def of(cls, evidence: Evidence, components: int) -> Basis:
        """From the mean responses of all targets."""
        targets = list(evidence.rows_of)
        effects = {space: evidence.fused(space, targets) for space in SPACES}
        vectors, values = main_directions(effects["bulk"], components)
        scaled = vectors / np.sqrt(values)
        axes = {space: (scaled.T @ effect).astype(np.float32) for space, effect in effects.items()}
        size = float(np.sqrt(values.sum() / max(len(targets) * len(values), 1)))
        return cls(axes, max(size, 1e-9))


class TransferResidual(Transfer):
    """The transfer prior plus a low-rank residual.

    Parameters
    ----------
    n_genes
        Genes of the effects.
    rank, hidden
        Components of the response basis; width of the attention.
    steps, learning_rate, seeds
        Of training; networks that are averaged.
    source_dropout
        Probability with which a study's evidence is left out of a step.
    contrast
        How a target is to be told from others: ``cosine`` (as the scores of 2026 do) or ``l1`` (2025).
    blend
        Part of the network's output that is used; None: by leaving out one context at a time.
    denoising to shrinkage
        Of the prior (`Transfer`).
    """

    def __init__(
        self,
        n_genes: int,
        rank: int = 48,
        hidden: int = 64,
        steps: int = 300,
        learning_rate: float = 2e-3,
        seeds: int = 3,
        source_dropout: float = 0.3,
        contrast: str = "cosine",
        blend: float | None = None,
        denoising: float | None = None,
        smooth: float | None = None,
        vectors: float | None = None,
        components: int | None = None,
        whitening: float | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        weights: str = "equal",
        sign_power: float = 0.0,
        neighbours: str | None = None,
        shrinkage: bool = False,
    ) -> None:
        shape = (denoising, smooth, vectors, components, whitening, alpha, beta)
        super().__init__(n_genes, *shape, weights, sign_power, neighbours, shrinkage)
        check_choice("model.contrast", contrast, LOSSES)
        for name, value, least in (("rank", rank, 1), ("hidden", hidden, 1), ("steps", steps, 0), ("seeds", seeds, 1)):
            check_number(f"model.{name}", value, least)
        check_number("model.learning_rate", learning_rate, 0, whole=False, above=True)
        check_number("model.source_dropout", source_dropout, 0, 1, whole=False)
        self.rank, self.hidden, self.steps, self.seeds = rank, hidden, steps, seeds
        self.learning_rate, self.source_dropout = learning_rate, source_dropout
        self.contrast, self.blend = contrast, blend

    def fit(self, evidence: Evidence) -> list[str]:
        lines = super().fit(evidence)
        contexts = [c for c in evidence.context_names if len(evidence.targets_in(c)) >= FEWEST_TARGETS]
        if len(contexts) < FEWEST_CONTEXTS:
            self.fitted["residual"] = None
            return [
                *lines,
                f"residual     none: it needs {FEWEST_CONTEXTS} training contexts, and there are {len(contexts)}",
            ]
        table = pd.DataFrame()
        blend = self.blend
        if blend is None:
            table = self._left_out(evidence, contexts)
            blend = chosen_blend(table)
        self.fitted["residual"] = {**self._trained(evidence, self, self.seeds), "blend": blend}
        for value, rows in table.groupby("blend") if len(table) else []:
            lines.append(
                f"residual     blend {value:.2f}: left-out contexts, pds {rows['pds'].mean():.3f}, error {rows['error'].mean():.3f}"
            )
        return [*lines, f"residual     {blend:.2f} of it is used"]

    def effect(self, space: str, context: str, targets: Sequence[str]) -> np.ndarray:
        prior = super().effect(space, context, targets)
        residual = self.fitted["residual"]
        if residual is None or residual["blend"] == 0:
            return prior
        larger = self._scale(space) / self.fitted["scale"][space] if self.fitted["scale"][space] > 0 else 1.0
        return prior + np.float32(larger * residual["blend"]) * self.residual(space, context, targets, residual)

    def residual(self, space: str, context: str, targets: Sequence[str], fitted: Mapping[str, Any]) -> np.ndarray:
        """What the network adds to the prior, before it is blended, ``(T, G)``."""
        basis = Basis(fitted["axes"], fitted["size"])
        inputs = self._inputs(self, context, targets, basis)
        total = np.zeros((len(targets), basis.axes["bulk"].shape[0]), np.float32)
        for state in fitted["networks"].values():
            network = Attention(TRAITS, inputs[2].shape[-1], total.shape[1], self.hidden)
            network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
            with torch.inference_mode():
                total += network.eval()(*inputs).numpy() / len(fitted["networks"])
        found: np.ndarray = (total * np.float32(fitted["scale"])) @ basis.axes[space]
        return found

    def _inputs(self, prior: Transfer, context: str, targets: Sequence[str], basis: Basis) -> tuple[Tensor, ...]:
        """Evidence of other contexts ``(T, E, F)``, which of it is there ``(T, E)``, vectors ``(T, F)``, and the prior ``(T, K)``."""
        evidence = prior.known
        rows = [evidence.usable(t, context) for t in targets]
        others = evidence.fused("bulk", targets, context)
        most, width = max([1, *map(len, rows)]), basis.axes["bulk"].shape[0] + TRAITS
        found = np.zeros((len(targets), most, width), np.float32)
        there = np.zeros((len(targets), most), bool)
        here = prior.controls.get(context)
        like = {other: control_likeness(here, prior.controls.get(other)) for other in evidence.context_names}
        for number, some in enumerate(rows):
            for place, row in enumerate(some.tolist()):
                effect = evidence.centred["bulk"][row]
                size = max(float((effect**2).sum()), 1e-12)
                agrees = float(cosine(effect[None], others[number][None] - effect[None] / max(len(some), 1))[0])
                found[number, place, :-TRAITS] = (basis.axes["bulk"] @ effect) / basis.size
                found[number, place, -TRAITS:] = (
                    np.sqrt(max(1 - evidence.noise[row] / size, 0)),
                    np.log(size) / 5,
                    like[evidence.contexts[row]],
                    agrees,
                )
                there[number, place] = True
        coordinates = (prior.transferred("bulk", context, targets, scaled=False) @ basis.axes["bulk"].T) / basis.size
        vectors = prior.vectors.of(targets)
        return tuple(torch.from_numpy(x) for x in (found, there, vectors, coordinates.astype(np.float32)))

    def _trained(self, evidence: Evidence, prior: Transfer, seeds: int) -> dict[str, Any]:
        """Networks trained to predict each context of `evidence` from the others."""
        basis = Basis.of(evidence, self.rank)
        generator = np.random.default_rng(0)
        sketch = (
            (generator.standard_normal((self.n_genes, SKETCH)) / np.sqrt(SKETCH)).astype(np.float32)
            if self.n_genes > SKETCH
            else None
        )

        def seen(effect: np.ndarray) -> Tensor:
            return torch.from_numpy(effect if sketch is None else effect @ sketch)

        axes_KH = seen(basis.axes["bulk"])
        contexts, scale = [], max(prior.fitted["scale"]["bulk"], 0.05) * basis.size
        for context in evidence.context_names:
            targets, truth = evidence.measured("bulk", context)
            if len(targets) >= FEWEST_TARGETS:
                start = seen(Transfer.training_effect(prior, "bulk", context, targets))
                contexts.append((self._inputs(prior, context, targets, basis), start, seen(truth)))
        networks = {}
        with progress_bar(seeds * self.steps, "residual", "steps") as progress:
            for seed in range(seeds):
                state = _fit_network(contexts, axes_KH, scale, self, seed, progress.update)
                networks[str(seed)] = {key: value.numpy() for key, value in state.items()}
        return {"axes": dict(basis.axes), "size": basis.size, "scale": scale, "networks": networks}

    def _left_out(self, evidence: Evidence, contexts: Sequence[str]) -> pd.DataFrame:
        """What blends reach in each context when everything is fitted without it."""
        rows = []
        for context in contexts:
            others = evidence.without(context)
            prior = Transfer(self.n_genes)
            prior.vectors, prior.controls = self.vectors, self.controls
            prior.fitted = {**self.fitted, "own": {}}
            prior.evidence = others
            fitted = self._trained(others, prior, 1)
            names = [t for t in evidence.targets_in(context) if len(others.usable(t))]
            if len(names) < FEWEST_TARGETS:
                continue
            measured, effects = evidence.measured("bulk", context)
            place = {t: i for i, t in enumerate(measured)}
            truth = effects[[place[t] for t in names]]
            start = Transfer.effect(prior, "bulk", context, names)
            held = TransferResidual(self.n_genes, self.rank, self.hidden)
            held.evidence, held.vectors, held.controls, held.fitted = others, self.vectors, self.controls, prior.fitted
            added = held.residual("bulk", context, names, fitted)
            for blend in BLENDS:
                rows.append({"context": context, "blend": blend, **judged(start + np.float32(blend) * added, truth)})
        return pd.DataFrame(rows)


def _fit_network(
    contexts: list[Any], axes_KH: Tensor, scale: float, model: TransferResidual, seed: int, done: Any
) -> dict[str, Tensor]:
    """One network: 1 - cosine, how well a target is told from the others of its context, and a little squared error."""
    generator = torch.Generator().manual_seed(seed)
    inputs = contexts[0][0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Attention(TRAITS, inputs[2].shape[-1], axes_KH.shape[0], model.hidden)
    optimizer = torch.optim.AdamW(network.parameters(), lr=model.learning_rate, weight_decay=0.05)
    for step in range(model.steps):
        (evidence_TEF, there_TE, query_TF, prior_TK), start_TH, truth_TH = contexts[step % len(contexts)]
        kept = there_TE & (torch.rand(there_TE.shape, generator=generator) >= model.source_dropout)
        kept = torch.where(kept.any(1, keepdim=True), kept, there_TE)
        total_TH = start_TH + scale * network(evidence_TEF, kept, query_TF, prior_TK) @ axes_KH
        loss = loss_of(total_TH, truth_TH, model.contrast)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = model.learning_rate * min(1.0, (step + 1) / 20) * (1 - 0.9 * step / max(model.steps, 1))
        optimizer.step()
        done(1)
    return {key: value.detach() for key, value in network.state_dict().items()}


def loss_of(predicted_TH: Tensor, truth_TH: Tensor, contrast: str) -> Tensor:
    """1 - cosine, plus the cross entropy of telling each target's truth from those of the others, plus .1 Huber."""
    one, other = nn.functional.normalize(predicted_TH, dim=-1), nn.functional.normalize(truth_TH, dim=-1)
    cosine = 1 - (one * other).sum(-1).mean()
    if contrast == "cosine":
        likeness_TT = one @ other.T / TEMPERATURE
    else:
        distance_TT = torch.cdist(predicted_TH, truth_TH, p=1)
        likeness_TT = -distance_TT / distance_TT.detach().mean() / TEMPERATURE
    told = nn.functional.cross_entropy(likeness_TT, torch.arange(len(one)))
    size = truth_TH.square().mean().sqrt()
    return cosine + told + 0.1 * nn.functional.huber_loss(predicted_TH / size, truth_TH / size)


def control_likeness(one: ContextControls | None, other: ContextControls | None) -> float:
    """Correlation of the mean log1p of control cells of two contexts; 0 where one is not known."""
    if one is None or other is None:
        return 0.0
    a, b = (np.nan_to_num(c.profile.value("bulk")[0]) for c in (one, other))
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(float(np.sqrt((a**2).sum() * (b**2).sum())), 1e-12))


def chosen_blend(table: pd.DataFrame) -> float:
    """The blend worth most in left-out contexts, if it beats none by more than a standard error over them; else 0."""
    value = worth(table).groupby([table["blend"], table["context"]]).first().unstack()
    gain = value - value.loc[0.0]
    mean, error = gain.mean(axis=1), gain.std(axis=1, ddof=1) / np.sqrt(gain.shape[1])
    best = mean.idxmax()
    return float(best) if mean[best] > error[best] else 0.0
