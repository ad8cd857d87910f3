"""The report as its reader has it: small, without the network, and in a browser sortable, searchable, printable, at any width."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from vcell.pages.curves import panels, write_curves
from vcell.score.conclusions import conclude
from vcell.score.explore import Effects
from vcell.score.figures import Delta, called_genes, deltas, embedding, heat_map, knock_down, png_of
from vcell.score.report import Report, floor_to_ceiling, page
from vcell.score.scoring import SCORERS
from vcell.score.shown import Shown
from vcell.score.statistics import Interval

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]  # fmt: skip
SCORER = SCORERS["cell-eval"]


def make_report(targets: int = 12, genes: int = 60, contexts: tuple[str, ...] = ("A549",), cells: int = 30) -> Report:
    """A report of made-up numbers: target T1 has one gene called rightly, one wrongly, one missed."""
    rng = np.random.default_rng(0)
    names = [f"T{i}" for i in range(targets)]
    keys = [m.key for m in SCORER.metrics]
    predictors = ["model", "copied_controls", SCORER.floor, "split_half"]
    values = pd.DataFrame({"SCORE": [0.4, -0.1, 0.0, 0.8]} | {k: [0.5, 0.2, 0.3, 0.9] for k in keys}, index=predictors)
    values["MAE"] = [0.2, 0.4, 0.3, 0.1]
    per_target = pd.DataFrame(
        [
            {"predictor": "model", "context": c, "perturbation": t, **{k: round(float(rng.random()), 3) for k in keys}}
            for c in contexts
            for t in names
        ]
    )
    pictures = []
    for context in contexts:
        fold = rng.integers(-127, 127, (2, targets, genes)).astype(np.int8)
        called = np.full((targets, genes), 4, np.uint8)
        called[1, :3] = 4 + 3, 4 + 2, 4 + 1
        fold[:, 1, 0] = 100
        effects = Effects([f"G{g}" for g in range(genes)], names, genes, 4.0, fold[0], fold[1], rng.integers(0, 255, (targets, genes)).astype(np.uint8), called)  # fmt: skip
        table = pd.DataFrame({"pred": 2, "real": np.arange(targets) + 2, "both": 1, "right": 1, "effect": rng.random(targets), "cells": 50, "own_pred": -1.0, "own_real": -2.0}, index=pd.Index(names, name="perturbation"))  # fmt: skip
        spots = pd.DataFrame(
            {"x": rng.random(cells), "y": rng.random(cells), "kind": "measured", "perturbation": names[0]}
        )
        pictures.append(Shown(context, {}, table, spots, effects))
    interval = {key: Interval(0.4, 0.3, 0.5) for key in ("SCORE", *keys)}
    return Report(
        values, pd.concat(dict.fromkeys(contexts, values), names=["context", "predictor"]), {"model": interval}, {}, per_target,
        SCORER.metrics, SCORER, ["a remark with <b>tags</b>"], {"pred": "</script><i>pred.h5ad"}, pictures, {},
    )  # fmt: skip


def test_three_hundred_targets_in_three_contexts_stay_below_five_megabytes():
    text = page(make_report(300, 660, ("A", "B", "C"), cells=3_750))
    assert len(text.encode()) < 5_000_000


def test_names_cannot_break_the_page():
    text = page(make_report())
    assert "</script><i>pred" not in text and "<b>tags</b>" not in text and "&lt;b&gt;tags" in text


def test_a_heat_map_needs_a_metric_with_room_between_its_ends():
    genes = make_report().pictures[0].genes
    targets = pd.DataFrame({"PDS": 0.5}, index=genes.index)
    (metric,) = (m for m in SCORER.metrics if m.key == "PDS")
    assert heat_map(targets, genes, {"PDS": 0.4}, {"PDS": 0.9}, [metric]) is not None
    assert heat_map(targets, genes, {"PDS": 0.9}, {"PDS": 0.4}, [metric]) is None


@pytest.mark.parametrize("size", [0.004, 1.0, 7.0])
@pytest.mark.parametrize("targets", [1, 2, 5])
def test_pictures_have_room_for_their_words(targets: int, size: float):
    rng = np.random.default_rng(0)
    names = ["A_TARGET_WHOSE_NAME_GOES_ON_AND_ON", "B", "C", "D", "E"][:targets]
    effects = size * rng.normal(size=(2, targets, 1300))
    shown = {n: Delta(effects[0, i], effects[1, i], np.arange(1300) < 1234, -0.5) for i, n in enumerate(names)}
    spots = pd.DataFrame({"x": size * rng.normal(size=40), "y": -20 * size * rng.random(40), "perturbation": "T1"})
    spots["kind"] = ["control", "measured", "predicted", "measured"] * 10
    counts = {k: rng.integers(0, int(3000 * size), targets) for k in ("real", "pred", "both")}
    genes = pd.DataFrame(counts | {"own_real": -size, "own_pred": size}, index=names)
    report = make_report()
    metrics = [m for m in report.metrics if m.key in ("DES", "PDS")]
    table = pd.DataFrame({m.key: rng.random(targets) for m in metrics}, index=names)
    ends = {m.key: 0.0 for m in metrics}, {m.key: 1.0 for m in metrics}
    figures = [
        deltas(shown), embedding(spots), called_genes(genes), knock_down(genes),
        heat_map(table, genes, *ends, metrics), floor_to_ceiling(report),
    ]  # fmt: skip
    for figure in figures:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        parts = [*(axis for axis in figure.axes if axis.get_visible()), *figure.legends]
        boxes = [part.get_tightbbox(canvas.get_renderer()) for part in parts]
        width, height = figure.bbox.size
        for number, box in enumerate(boxes):
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
            assert not any(box.overlaps(other) for other in boxes[:number])


def test_a_name_may_hold_signs_of_formulas():
    genes = make_report().pictures[0].genes.rename(index={"T0": "A$_$B", "T1": r"\$\frac$"})
    effect = Delta(np.arange(5.0), np.arange(5.0), np.arange(5) > 2, 1.0)
    for picture in (png_of(deltas, {"A$_$B": effect}), png_of(called_genes, genes)):
        assert picture is not None and picture.startswith(b"\x89PNG")


def test_without_pictures_the_page_has_tables_alone():
    report = make_report()
    text = page(Report(**{**report.__dict__, "pictures": []}))
    assert 'id="scores"' in text and '"contexts":[]' in text


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (Interval(0.4, 0.3, 0.5), "reaches 50 % of what a repeat"),
        (Interval(0.1, -0.1, 0.3), "Not distinguishable"),
        (Interval(-0.2, -0.3, -0.1), "Worse than the official baseline"),
    ],
)
def test_conclusions_say_what_the_interval_allows(interval: Interval, said: str):
    report = make_report()
    floors = {m.key: float(report.scores.loc[SCORER.floor, m.key]) for m in SCORER.metrics}
    table = report.per_perturbation.set_index("perturbation")
    found = conclude("model", report.scores, interval, floors, "split_half", SCORER.floor, SCORER.metrics, table, [report.pictures[0].genes], {"A": 0.4})  # fmt: skip
    assert said in found[0]
    assert any("calls 2, of which 1 rightly and 1 wrongly" in sentence for sentence in found)
    assert any("falls to 25 % as measured and 50 % as predicted" in sentence for sentence in found)


def test_curves_are_sorted_into_topics_and_thinned():
    rows = [{"step": s, "train/loss": 1 / (s + 1), "train/learning_rate": 0.1} for s in range(5_000)]
    rows[-1]["val/loss"] = 0.5
    found = panels({"run": rows})
    assert [panel["topic"] for panel in found] == ["Loss", "Optimiser"]
    train, val = found[0]["metrics"][0]["curves"]
    assert len(train["steps"]) <= 2_001 and train["steps"][-1] == 4_999 and val["values"] == [0.5]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("needs Chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Opens a report of two contexts; whatever goes wrong in its script, or asks for the network, fails the test."""
    path = tmp_path / "report.html"
    path.write_text(page(make_report(contexts=("A549", "K562"))))
    problems: list[str] = []
    pages = []

    def open_page(width: int = 1280, **options: Any) -> Any:
        tab = browser.new_page(viewport={"width": width, "height": 900}, **options)
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:", "blob:")) else problems.append(request.url)
            ),
        )
        tab.goto(path.as_uri())
        pages.append(tab)
        return tab

    yield open_page
    for tab in pages:
        tab.close()
    assert not problems


def column(tab: Any, name: str) -> list[float]:
    return [float(v) for v in tab.locator(f"#panel0 table.targets tr[data-target] td[data-label='{name}']").evaluate_all("cells => cells.map((c) => c.dataset.value)")]  # fmt: skip


def test_the_table_of_targets_sorts_both_ways(opened: Any):
    tab = opened()
    head = tab.locator("#panel0 table.targets th", has_text="PDS").first
    head.locator("button").click()
    assert (
        column(tab, "PDS") == sorted(column(tab, "PDS"), reverse=True)
        and head.get_attribute("aria-sort") == "descending"
    )
    head.locator("button").focus()
    tab.keyboard.press("Enter")
    assert column(tab, "PDS") == sorted(column(tab, "PDS")) and head.get_attribute("aria-sort") == "ascending"


def test_the_search_leaves_the_targets_asked_for(opened: Any):
    tab = opened()
    tab.locator("#panel0 input[type=search]").fill("t11")
    assert tab.locator("#panel0 tr[data-target]:visible").evaluate_all("rows => rows.map((r) => r.dataset.target)") == [
        "T11"
    ]


def test_a_target_opens_its_genes_with_their_names_on_hover(opened: Any):
    tab = opened()
    tab.get_by_role("button", name="T1", exact=True).first.click()
    plot = tab.locator("#panel0 figure[data-chart='volcano_T1'] svg[aria-label]")
    plot.wait_for()
    dots = plot.locator("[aria-label=dot] circle")
    assert dots.count() == 60
    spot = dots.last.bounding_box()
    tab.mouse.move(spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2)
    assert plot.locator("[aria-label=tip] text").text_content().lstrip("\u200b").startswith("G")
    tab.get_by_role("button", name="T1", exact=True).first.click()
    assert not plot.count()


def test_a_gene_is_shown_in_every_target(opened: Any):
    tab = opened()
    tab.locator("#panel0 input[placeholder='type a gene']").fill("G0")
    figure = tab.locator("#panel0 figure[data-chart=gene_G0]")
    figure.wait_for()
    assert "1 rightly called, 0 wrongly, 0 missed, of 12 targets" in figure.inner_text()
    tab.locator("#panel0 input[placeholder='type a gene']").fill("nonsense")
    tab.keyboard.press("Enter")
    assert "nonsense is not among the genes" in tab.locator("#panel0 .gene").inner_text()


def test_contexts_are_tabs_that_arrows_move_between(opened: Any):
    tab = opened()
    assert tab.locator("#panel0").is_visible() and not tab.locator("#panel1").is_visible()
    tab.get_by_role("tab", name="A549").focus()
    tab.keyboard.press("ArrowRight")
    assert (
        tab.locator("#panel1").is_visible()
        and tab.get_by_role("tab", name="K562").get_attribute("aria-selected") == "true"
    )


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_screen(opened: Any, width: int):
    tab = opened(width)
    tab.get_by_role("button", name="T1", exact=True).first.click()
    tab.locator("#panel0 figure[data-chart='predicted_T1'] svg").wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    wide = tab.locator("#panel0 table.targets").evaluate("t => t.scrollWidth - t.parentElement.clientWidth")
    assert width > 400 or wide <= 0, "on a phone the rows of the table are cards"


def test_dark_follows_the_system_and_the_button(opened: Any):
    tab = opened(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert tab.evaluate(ground) == "rgb(18, 22, 28)"
    tab.locator("#theme").click()
    assert tab.evaluate(ground) == "rgb(255, 255, 255)"


def test_print_shows_every_context_and_no_controls(opened: Any):
    tab = opened()
    tab.emulate_media(media="print")
    assert tab.locator("#panel0").is_visible() and tab.locator("#panel1").is_visible()
    assert not tab.locator("header").is_visible() and not tab.locator("#panel0 input[type=search]").is_visible()


def test_tables_and_charts_can_be_saved(opened: Any):
    tab = opened()
    for place, name in (("#panel0 .row button.save", "targets_A549.csv"), ("figure[data-chart=range] button.save >> nth=1", "range.svg"), ("figure[data-chart=range] button.save >> nth=0", "range.png")):  # fmt: skip
        with tab.expect_download() as saved:
            tab.locator(place).first.click()
        assert saved.value.suggested_filename == name and saved.value.path().stat().st_size > 200


def test_the_page_of_curves_draws_every_metric(browser: Any, tmp_path: Path):
    rows = [{"step": s, "train/loss": 1.0 / (s + 1), "val/loss": 0.5, "val/discrimination": 0.9} for s in range(20)]
    write_curves(tmp_path / "curves.html", {"a": rows, "b": rows}, "a, b")
    tab = browser.new_page(viewport={"width": 400, "height": 900})
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto((tmp_path / "curves.html").as_uri())
    assert tab.locator("figure[data-chart] svg[aria-label]").count() == 2 and not errors
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    tab.close()
