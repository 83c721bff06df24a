"""The report of motifs: what it draws, what it plays, and what it says of what cannot be drawn."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crystalvae.errors import ConfigError
from crystalvae.evaluation.motif_report.animation import check_animations, write_animation
from crystalvae.evaluation.motif_report.colours import motif_colours
from crystalvae.evaluation.motif_report.latent_map import is_class, project, window_colourings
from crystalvae.evaluation.motif_report.model_plots import varying
from crystalvae.evaluation.motif_report.player import MovingScene, moving_scene
from crystalvae.evaluation.motif_report.write import write_motif_report
from tests.motif_samples import HOSTILE, motif_findings
from tests.sequences import swinging

PLOTS = {
    *("latent_map", "timeline", "transitions", "usage", "tree"),
    *("reconstruction", "forecast_errors", "training"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    write_motif_report(motif_findings(), place, animations=["gif"])
    return place


def test_the_page_has_every_part(folder: Path):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r'id="plot-(\w+)"', page)) == PLOTS == {path.stem for path in (folder / "plots").iterdir()}
    assert "0.93" in page
    assert HOSTILE not in page
    assert "://" not in re.sub(r"(?s)<script>.*?</script>|<pre>.*?</pre>", "", page)
    data = json.loads(re.search(r'id="viewer-data">(.*?)</script>', page)[1])
    assert {clip["motif"] for clip in data["clips"]} == {0, 1}
    assert data["clips"][-1]["obstacle"] == "its cell has no volume"


def test_a_page_without_a_model_says_nothing_of_it(tmp_path: Path):
    bare = motif_findings(forecasts=(), forecast_errors=None, training=None, label=None, agreement=None, clips=())
    paths = write_motif_report(bare, tmp_path)
    page = paths[0].read_text(encoding="utf-8")
    assert set(re.findall(r'id="plot-(\w+)"', page)) == PLOTS - {"reconstruction", "forecast_errors", "training"}
    assert "viewer-data" not in page
    assert "Rand index" not in page


def test_a_clip_moves_its_atoms_and_no_atom_comes_or_goes():
    trajectory = swinging("a", frames=12)
    moving = moving_scene(trajectory)
    assert isinstance(moving, MovingScene)
    assert len(moving.mean.elements) == moving.positions.shape[1] == 9  # Cs on eight corners, Cl in the middle
    (chlorine,) = [row for row, name in enumerate(moving.mean.elements) if name == "Cl"]
    np.testing.assert_allclose(moving.positions[:, chlorine], trajectory.cart_coords[:, 1], atol=1e-9)
    corner = [row for row, name in enumerate(moving.mean.elements) if name == "Cs"]
    far = moving.positions[:, corner].sum(axis=2).argmax(axis=1)
    np.testing.assert_allclose(
        moving.positions[np.arange(12), np.array(corner)[far]], trajectory.lattices.sum(dim=1), atol=1e-9
    )
    shifted = replace(trajectory, frac_coords=trajectory.frac_coords + torch.tensor([2.0, -1.0, 0.0]))
    again = moving_scene(shifted)
    np.testing.assert_allclose(np.sort(again.positions, axis=1), np.sort(moving.positions, axis=1), atol=1e-9)


def test_windows_are_coloured_by_the_frame_in_their_middle():
    findings = motif_findings()
    found = window_colourings(findings, None)
    assert list(found) == ["motif", "community", "time (ps)", "regime", "temperature"]
    windows = [len(entry.window_motifs) for entry in findings.segmentation.segmented]
    assert {len(values) for values in found.values()} == {sum(windows)}
    assert found["time (ps)"][:2].tolist() == pytest.approx([0.008, 0.010])  # frames 4 and 5, 2 fs apart
    assert list(window_colourings(findings, ["regime"]))[-1] == "regime"
    with pytest.raises(ConfigError, match="no property phase; there are regime, temperature"):
        window_colourings(findings, ["phase"])


def test_principal_components_are_those_of_numpy():
    latents = np.random.default_rng(0).normal(size=(50, 4)) * [3.0, 1.0, 0.2, 0.1]
    points, how = project(latents, projection="pca", seed=0)
    variances = np.sort(np.linalg.eigvalsh(np.cov(latents.T)))[::-1]
    np.testing.assert_allclose(points.var(axis=0, ddof=1), variances[:2])
    assert f"{variances[0] / variances.sum():.0%} and {variances[1] / variances.sum():.0%}" in how
    assert project(latents[:, :1], projection="pca", seed=0)[0].shape == (50, 2)


def test_what_needs_a_package_says_which():
    import importlib.util

    if importlib.util.find_spec("umap") is None:
        with pytest.raises(ConfigError, match="pip install umap-learn"):
            project(np.zeros((5, 2)), projection="umap", seed=0)
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        with pytest.raises(ConfigError, match="pip install imageio-ffmpeg"):
            check_animations(["mp4"])
    with pytest.raises(ConfigError, match="expected a list of some of gif, mp4"):
        check_animations(["avi"])


def test_a_gif_has_the_frames_and_they_differ(folder: Path):
    with Image.open(folder / "animations" / "motif_0.gif") as image:
        assert image.n_frames == 8
        frames = []
        for number in range(8):
            image.seek(number)
            frames.append(np.asarray(image.convert("RGB")))
    assert all((frames[0] != other).any() for other in frames[1:])
    colours = frames[0].reshape(-1, 3).astype(int)
    assert ((colours[:, 1] - colours[:, [0, 2]].max(axis=1)) > 60).any()  # chlorine is green


def test_an_mp4_can_be_read_again(tmp_path: Path):
    reader = pytest.importorskip("imageio_ffmpeg")
    moving = moving_scene(swinging("a", frames=6))
    assert isinstance(moving, MovingScene)
    path = write_animation(moving, tmp_path / "clip.mp4", title="motif 0", colour="#0b6fb8")
    frames, seconds = reader.count_frames_and_secs(str(path))
    assert frames == 6
    assert seconds == pytest.approx(0.4, abs=0.1)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [1, 10, 37])
def test_motifs_have_colours_of_their_own(number: int):
    assert len(set(motif_colours(number))) == number


def test_few_whole_numbers_are_classes():
    assert is_class(np.array([0, 1, 2, 1]))
    assert is_class(np.array([0.0, np.nan, 1.0]))
    assert not is_class(np.array([300.2, 299.1]))
    assert not is_class(np.arange(30))


def test_features_that_move_the_most_are_drawn():
    (forecast,) = motif_findings().forecasts
    spread = forecast.window.std(dim=0)
    assert set(varying(forecast).tolist()) == set(spread.topk(6).indices.tolist())
