"""The report, and crystals in a notebook, in a real browser: they ask the network for nothing, and show atoms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pymatgen.core import Structure

from crystalvae.data.batch import CrystalBatch
from crystalvae.evaluation.report import write_html_report
from tests.browser import FLAGS, Visit, browser, driver, launch, wait_until  # fixtures, too
from tests.report_samples import HOSTILE, generation_report, reconstruction_report
from tests.samples import rock_salt_and_friends

pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="module")
def generation(browser, tmp_path_factory) -> Iterator[Visit]:
    visit = Visit(browser, write_html_report(generation_report(), tmp_path_factory.mktemp("generation")))
    yield visit
    visit.context.close()


@pytest.fixture(scope="module")
def reconstruction_page(tmp_path_factory) -> Path:
    return write_html_report(reconstruction_report(), tmp_path_factory.mktemp("reconstruction"))


@pytest.fixture(scope="module")
def reconstruction(browser, reconstruction_page) -> Iterator[Visit]:
    visit = Visit(browser, reconstruction_page)
    yield visit
    visit.context.close()


@pytest.fixture(params=["generation", "reconstruction"])
def visit(request) -> Visit:
    return request.getfixturevalue(request.param)


def test_it_loads_without_a_word_and_without_a_network(visit):
    assert visit.said == []
    assert [url for url in visit.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in visit.asked if url.startswith("file:")]) == 1  # the page itself, and nothing beside it


def test_every_plot_is_drawn(visit):
    sizes = visit.page.eval_on_selector_all(".plot img", "images => images.map(image => image.naturalWidth)")
    assert len(sizes) >= 6
    assert min(sizes) > 100


def test_nothing_is_wider_than_the_window(visit):
    assert visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_viewer_shows_atoms(visit):
    assert visit.atoms(0) > 1
    colours = visit.colours(".viewer")
    assert len([colour for colour in colours if max(colour) - min(colour) > 60]) > 50  # shaded spheres, not a blank


def test_the_best_generated_crystal_is_drawn_in_its_elements_colours(generation):
    # Rock salt: 8 atoms of the cell; Na and Cl on faces, edges and corners are drawn on every side: 27.
    assert generation.page.locator('.group[data-group="0"] .verdict').inner_text().startswith("NaCl (salt)")
    assert generation.atoms(0) == 27
    reds = generation.colours('.group[data-group="0"] .viewer')
    assert any(green > 150 and red < 100 and blue < 100 for red, green, blue in reds)  # Cl
    assert any(blue > 130 and red > 80 and green < 130 for red, green, blue in reds)  # Na


def test_another_crystal_is_shown_when_it_is_chosen(generation):
    group = generation.page.locator('.group[data-group="0"]')
    before = group.locator(".verdict").inner_text()
    group.locator(".chips button").nth(1).click()
    assert group.locator(".verdict").inner_text() != before
    assert group.locator(".chips button").nth(1).get_attribute("aria-selected") == "true"
    assert group.locator(".chips button").nth(0).get_attribute("aria-selected") == "false"
    group.locator(".chips button").nth(0).click()
    assert group.locator(".verdict").inner_text() == before


def test_crystals_that_cannot_be_drawn_say_why(generation):
    told = []
    for group in generation.page.locator(".group").all():
        for button in group.locator(".chips button").all():
            button.click()
            if not group.locator(".viewer").is_visible():
                told.append(group.locator(".obstacle").inner_text())
        group.locator(".chips button").first.click()
    assert len(told) == 3
    for reason in ("no volume", "not finite", "450 atoms"):
        assert any(reason in text for text in told)
    assert generation.said == []  # among the ids is one that would raise an alert
    assert HOSTILE in generation.page.locator("#crystals").inner_text()


def test_dragging_turns_the_crystal(generation):
    viewer = generation.page.locator('.group[data-group="0"] .viewer')
    viewer.scroll_into_view_if_needed()
    before = generation.page.evaluate("window.crystalViewers[0].getView()")
    box = viewer.bounding_box()
    generation.page.mouse.move(box["x"] + 150, box["y"] + 150)
    generation.page.mouse.down()
    generation.page.mouse.move(box["x"] + 260, box["y"] + 180, steps=4)
    generation.page.mouse.up()
    after = generation.page.evaluate("window.crystalViewers[0].getView()")
    assert after[4:] != before[4:]  # the rotation


def test_target_and_prediction_turn_together(reconstruction):
    assert reconstruction.page.locator('.group[data-group="0"] .viewer').count() == 2
    reconstruction.page.evaluate("window.crystalViewers[0].rotate(40, 'y')")
    views = [reconstruction.page.evaluate(f"window.crystalViewers[{place}].getView()") for place in (0, 1)]
    assert views[0][4:] == pytest.approx(views[1][4:])


def test_a_cif_can_be_downloaded_from_the_page_itself(generation, tmp_path):
    group = generation.page.locator('.group[data-group="0"]')
    group.locator(".chips button").nth(0).click()
    with generation.page.expect_download() as waiting:
        group.locator(".download").click()
    waiting.value.save_as(tmp_path / "crystal.cif")
    assert waiting.value.suggested_filename == "salt.cif"
    structure = Structure.from_file(tmp_path / "crystal.cif", frac_tolerance=0)
    assert structure.composition.reduced_formula == "NaCl"
    assert structure.volume == pytest.approx(5.64**3, rel=1e-5)


def test_without_webgl_the_page_still_reads(driver, reconstruction_page):
    browser = launch(driver, ["--no-sandbox", "--disable-gpu", "--disable-3d-apis", *FLAGS[4:]])
    visit = Visit(browser, reconstruction_page)
    assert "no WebGL" in visit.page.locator(".obstacle").first.inner_text()
    assert not visit.page.locator(".viewer").first.is_visible()
    assert visit.page.locator(".download").first.is_visible()
    browser.close()


# ---- crystals in a notebook -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4])
def test_a_batch_in_a_notebook_is_drawn_in_a_closed_frame(browser, count: int, tmp_path: Path):
    path = tmp_path / "output.html"
    batch = CrystalBatch.from_structures(rock_salt_and_friends()[:count])
    ready = "<script>document.documentElement.dataset.ready = 'true'</script>"
    path.write_text(f'<meta charset="utf-8">{batch._repr_html_()}{ready}', encoding="utf-8")
    visit = Visit(browser, path)
    frame = visit.page.frames[1]
    wait_until(frame, "document.documentElement.dataset.ready === 'true'")
    assert visit.said == []
    assert [url for url in visit.asked if not url.startswith(("file:", "data:", "blob:", "about:"))] == []
    assert frame.evaluate("window.crystalViewer.selectedAtoms({}).length") == 27  # rock salt, with atoms on faces
    assert frame.evaluate("document.querySelectorAll('.tiles img').length") == (0 if count == 1 else count)
    if count > 1:
        frame.locator(".tiles button").nth(1).click()
        assert frame.locator(".shown p").first.inner_text().startswith("1: C ")
        assert frame.evaluate("window.crystalViewer.selectedAtoms({}).length") != 27
        sizes = frame.eval_on_selector_all(".tiles img", "images => images.map(image => image.naturalWidth)")
        assert min(sizes) > 100
    visit.context.close()
