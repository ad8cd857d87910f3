"""The pictures of the pages, from a report and runs that are there: python docs/pictures.py runs/demo/scores/report.html compare.html"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

OUT = Path(__file__).parent / "pictures"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]  # fmt: skip


def opened(browser, path: str, width: int, scheme: str = "light") -> Page:
    page = browser.new_page(viewport={"width": width, "height": 1000}, color_scheme=scheme)
    page.goto(Path(path).resolve().as_uri())
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "wider than the screen"
    return page


def shot(page: Page, name: str, top: float, height: float) -> None:
    size = page.viewport_size["width"]
    page.screenshot(path=OUT / f"{name}.png", full_page=True, clip={"x": 0, "y": top, "width": size, "height": height})


def main(report: str, compared: str) -> None:
    OUT.mkdir(exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = opened(browser, report, 1280)
        shot(page, "report", 0, 1150)
        page.locator("button.target").first.click()
        page.locator("figure[data-chart^=predicted] svg").wait_for()
        page.wait_for_timeout(300)
        shot(
            page,
            "target",
            page.evaluate("document.getElementById('targets').getBoundingClientRect().top + scrollY") - 10,
            700,
        )
        narrow = opened(browser, report, 400, "dark")
        shot(narrow, "report_400", 0, 1300)
        shot(opened(browser, compared, 1280), "compare", 0, 950)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
