"""The notebooks run, and what they show of crystals can be read without JavaScript."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from crystalvae.data.batch import CrystalBatch
from tests.conftest import REPOSITORY
from tests.samples import random_crystals, rock_salt_and_friends

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def table(html: str) -> list[list[str]]:
    """Texts of a page's rows, markup left out."""
    after = html.rpartition("</iframe>")[2]
    rows = re.findall(r"<tr>(.*?)</tr>", after)
    return [[re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[hd]>(.*?)</t[hd]>", row)] for row in rows]


def test_a_batch_says_what_it_holds_without_a_viewer():
    head, *rows = table(CrystalBatch.from_structures(rock_salt_and_friends())._repr_html_())
    assert head[1:] == ["formula", "atoms", "space group (0.1 Å)", "density, g/cm³", "shortest contact, Å"]
    assert rows[0] == ["0", "NaCl", "8", "Fm-3m (225)", "2.16", "2.82"]
    assert rows[1] == ["1", "C", "8", "Fd-3m (227)", "3.52", "1.54"]
    assert [row[1] for row in rows] == ["NaCl", "C", "ZnS", "LiO2"]


def test_many_crystals_are_counted_and_the_first_shown():
    html = random_crystals((2,) * 40)._repr_html_()
    assert "40 crystals, 80 atoms; the first 12:" in html
    assert len(table(html)) == 13
    assert "<p><b>CrystalBatch</b>: 0 crystals, 0 atoms</p>" in random_crystals()[[]]._repr_html_()
    assert "1 crystal, 1 atom<" in random_crystals((1,))._repr_html_()


def test_broken_crystals_are_shown_as_what_they_are():
    crystals = random_crystals((2, 3, 2))
    lattices = crystals.lattices.clone()
    lattices[0], lattices[1] = torch.nan, 0.0
    elements = crystals.atom_types.clone()
    elements[-1] = 0
    html = crystals.replace(lattices=lattices, atom_types=elements)._repr_html_()
    _, first, second, third = table(html)
    assert first[3:] == ["–", "–", "–"]
    assert second[3:] == ["–", "–", "0.00"]
    assert third[1].endswith("X1")
    assert "it has numbers that are not finite" in html
    assert "its cell has no volume" in html


def test_the_frame_is_closed_and_loads_nothing():
    html = CrystalBatch.from_structures(rock_salt_and_friends()[:1])._repr_html_()
    assert 'sandbox="allow-scripts"' in html
    assert "src=" not in html.replace("image).src", "").replace('"img").src', "")
    assert len(html) < 300_000  # the viewer is packed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_output(path: Path):
    nbformat = pytest.importorskip("nbformat", reason='no nbformat: pip install "crystalvae[dev]"')
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell for cell in code if cell.outputs or cell.execution_count] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nbclient = pytest.importorskip("nbclient", reason='no nbclient: pip install "crystalvae[dev]"')
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    paths = [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("CRYSTALVAE_CACHE_DIR", str(tmp_path / "cache"))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert sum("<b>CrystalBatch</b>" in html for html in shown) >= 2
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert 'install "ipywidgets"' not in said  # else there would be no progress bars
