"""`crystalvae doctor`: it finds what is there, and says what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement

from crystalvae.commands import doctor as module
from crystalvae.commands.doctor import doctor, judged, requirements
from tests.conftest import REPOSITORY


def examine() -> str:
    return doctor(OmegaConf.create({"device": "cpu"}))


def wrong(text: str) -> list[str]:
    """What the doctor says at the end."""
    return [line.strip() for line in text.partition("\nwrong (")[2].splitlines()[1:]]


def test_a_user_sees_versions_extras_devices_and_caches(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / "doctor.py")], capture_output=True, text=True, timeout=240,
        check=False, cwd=tmp_path, env={**os.environ, "CRYSTALVAE_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in (
        "  torch ",
        "  evaluation: ",
        "  processor: ",
        "  device=auto is ",
        "  mp20-small: ",
        ": empty so far",
    ):
        assert words in done.stdout
    assert list(tmp_path.iterdir()) == []  # it changes nothing


def test_what_is_misspelt_missing_or_not_writable_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "mp20").mkdir()
    (tmp_path / "mp20" / "train.csv").touch()
    monkeypatch.setenv("CRYSTALVAE_MP20_DIR", str(tmp_path / "mp20"))
    monkeypatch.setenv("CRYSTALVAE_MP_20_DIR", "x")
    monkeypatch.setenv("CRYSTALVAE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    said = wrong(examine())
    assert any(line.startswith("CRYSTALVAE_MP_20_DIR: nothing reads it") for line in said)
    assert any(line.endswith("lacks val.csv, test.csv") for line in said)
    assert any("cannot be written to" in line for line in said)


def test_a_damaged_model_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "mine.ckpt").write_bytes(b"damaged")
    monkeypatch.setattr(module.bundled, "folder", lambda: tmp_path)
    assert any("no sha256.json" in line for line in wrong(examine()))
    (tmp_path / "sha256.json").write_text('{"mine": "0"}', encoding="utf-8")
    assert any("its sha256 differs" in line for line in wrong(examine()))


def test_caches_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "results").write_bytes(b"0" * 2**20)
    monkeypatch.setenv("CRYSTALVAE_CACHE_DIR", str(tmp_path))
    assert f"  {tmp_path / 'evaluation'}: 1 files, 1.0 MiB" in examine()


def test_versions_are_judged_by_what_is_needed():
    assert judged(Requirement("numpy>=1"))[1] is False
    assert judged(Requirement("numpy>=999")) == (judged(Requirement("numpy>=1"))[0] + "; expected >=999", True)
    assert judged(Requirement("no-such-package>=1")) == ("no-such-package: not installed; expected >=1", True)
    assert {"torch", "pymatgen"} <= {entry.name for entry in requirements()}
    assert "matminer" not in {entry.name for entry in requirements()}
    assert "matminer" in {entry.name for entry in requirements("evaluation")}
