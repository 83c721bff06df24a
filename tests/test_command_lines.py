"""Command lines that cannot be right: one paragraph, status 1 or 2, no traceback, and nothing written."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from crystalvae.commands import main as command_line
from crystalvae.commands.main import main

LINES = r"""
sample num_atoms=1.5
sample num_atoms=100000000
sample seed=100000000000000000000
sample seed=-1
sample seed=null
sample seed=abc
sample seed=4294967296
sample composition=Li1e400
sample composition=Li1000000000
sample conditions.band_gap=1e30 num_samples=2
sample composition=LiF formula_units=100000000
sample device=null
sample trusted_targets=null
sample output_dir=
sample output_dir=[a,b]
sample =3
sample conditions=3
sample sampler=3
sample potential=[a]
sample --config-name=nothing
train-vae data.batch_size=1.5
train-vae data.batch_size=abc
train-vae data.batch_size=null
train-vae data.canonical=no
train-vae vae_module.atom_type_predict=no
train-vae compile=no
train-vae overwrite=no
train-vae trainer.check_val_every_n_epoch=0
train-vae trainer.max_epochs=null
train-vae trainer=null
evaluate generated=x data=prototypes timeout_s=abc
evaluate generated=x data=prototypes symmetry.tolerances=5
evaluate generated=x data=prototypes cache=no
evaluate generated=x data=prototypes report=off
latent operation=reconstruct ids=5
latent operation=reconstruct input=[]
latent operation=reconstruct input={a:1}
latent operation=interpolate interpolate.steps=1000000
cluster overwrite=off
=3
""".strip().splitlines()


@pytest.fixture
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CRYSTALVAE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["crystalvae"])
    GlobalHydra.instance().clear()
    return tmp_path


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize("line", LINES)
def test_what_cannot_be_right_is_one_paragraph(line: str, quiet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line))
    assert ended.value.code in {1, 2}
    errors = capsys.readouterr().err.strip().splitlines()
    assert len([entry for entry in errors if entry.startswith("error: ")]) == 1, errors
    assert errors[-1].startswith("error: ")
    assert "a mistake of crystalvae" not in errors[-1]
    assert "Traceback" not in "".join(errors)
    assert {path.name for path in quiet.iterdir()} <= {"cache"}


def test_whatever_else_goes_wrong_is_one_paragraph_too(
    quiet: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outside the commands: what happens before one is found."""

    def fail(_given: list[str]) -> None:
        raise KeyError("no\nsuch\x1b[2Jthing")

    monkeypatch.setattr(command_line, "_main", fail)
    monkeypatch.setattr("tempfile.tempdir", str(quiet))
    with pytest.raises(SystemExit) as ended:
        main(["sample"])
    errors = capsys.readouterr().err
    assert ended.value.code == 1
    assert errors.count("\n") == 1
    assert "\x1b" not in errors
    (kept,) = quiet.glob("crystalvae-*.txt")
    assert f"the traceback is in {kept}" in errors
    assert "raise KeyError" in kept.read_text()
