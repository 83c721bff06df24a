"""The motif report in a real browser: it opens from disk, and the viewer plays a motif's clips."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crystalvae.evaluation.motif_report.write import write_motif_report
from tests.browser import Visit, browser, driver, wait_until  # fixtures, too
from tests.motif_samples import motif_findings

pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="module")
def visit(browser, tmp_path_factory) -> Iterator[Visit]:
    opened = Visit(browser, write_motif_report(motif_findings(), tmp_path_factory.mktemp("motifs"))[0])
    yield opened
    opened.context.close()


def positions(visit: Visit) -> list[float]:
    script = "window.crystalPlayer.viewer.selectedAtoms({}).flatMap((atom) => [atom.x, atom.y, atom.z])"
    return visit.page.evaluate(script)


def test_it_loads_without_a_word_and_without_a_network(visit):
    assert visit.said == []
    assert [url for url in visit.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in visit.asked if url.startswith("file:")]) == 1
    sizes = visit.page.eval_on_selector_all(".plot img", "images => images.map(image => image.naturalWidth)")
    assert len(sizes) == 8
    assert min(sizes) > 100
    assert visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_clip_plays(visit):
    page = visit.page
    assert len(positions(visit)) == 3 * 9
    before = positions(visit)
    page.locator(".play").click()
    wait_until(page, "window.crystalPlayer.frame >= 3")
    page.locator(".play").click()
    assert page.evaluate("window.crystalPlayer.playing") is False
    assert positions(visit) != before
    assert page.locator(".clock").inner_text().startswith("frame ")
    colours = visit.colours(".viewer")
    assert len([colour for colour in colours if max(colour) - min(colour) > 60]) > 50  # shaded spheres


def test_the_slider_shows_the_frame_that_it_stands_on(visit):
    page = visit.page
    page.locator(".seek").fill("5")
    clip = page.evaluate("JSON.parse(document.getElementById('viewer-data').textContent).clips[0]")
    assert positions(visit) == pytest.approx([value for atom in clip["positions"][5] for value in atom])
    assert page.evaluate("window.crystalPlayer.frame") == 5


def test_another_clip_is_chosen_and_one_that_cannot_be_drawn_says_why(visit):
    page = visit.page
    buttons = page.locator(".chips button")
    count = buttons.count()
    buttons.nth(1).click()
    assert page.evaluate("window.crystalPlayer.clip") == 1
    assert page.evaluate("window.crystalPlayer.frame") == 0
    buttons.nth(count - 1).click()
    assert "no volume" in page.locator(".obstacle").inner_text()
    assert not page.locator(".viewer").is_visible()
    buttons.nth(0).click()
    assert page.locator(".viewer").is_visible()
    assert visit.said == []
