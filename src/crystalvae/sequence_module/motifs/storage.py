"""Segmented trajectories as files: the motifs as JSON, windows with latents, motifs and confidences as arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from crystalvae.errors import DataError
from crystalvae.files import whole_file
from crystalvae.sequence_module.motifs.model import MotifModel
from crystalvae.sequence_module.motifs.segmentation import SegmentedTrajectory

MODEL_NAME = "model.json"
WINDOWS_NAME = "windows.npz"
_ARRAYS = ("ids", "counts", "window", "latents", "motifs", "confidence")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Motifs, the latents of the W windows of all trajectories one after another, and each trajectory's motifs."""

    model: MotifModel
    latents: Float[np.ndarray, "W L"]
    segmented: Sequence[SegmentedTrajectory]

    @property
    def counts(self) -> list[int]:
        """Windows of each trajectory."""
        return [len(entry.window_motifs) for entry in self.segmented]

    @property
    def window_motifs(self) -> Int[np.ndarray, "W"]:
        """The motif of each window."""
        return np.concatenate([entry.window_motifs for entry in self.segmented])

    def save(self, folder: Path) -> list[Path]:
        """Write it to a folder that exists; returns the paths."""
        self.model.save(folder / MODEL_NAME)
        with whole_file(folder / WINDOWS_NAME) as partial, partial.open("wb") as file:
            np.savez(
                file,
                ids=np.array([entry.id for entry in self.segmented]),
                counts=np.array(self.counts),
                window=np.array(self.segmented[0].window),
                latents=self.latents,
                motifs=self.window_motifs,
                confidence=np.concatenate([entry.window_confidence for entry in self.segmented]),
            )
        return [folder / MODEL_NAME, folder / WINDOWS_NAME]

    @classmethod
    def load(cls, folder: Path) -> Segmentation:
        """Read what `save` wrote; `DataError` for a file that is missing or damaged. Nothing in it is executed."""
        path = folder / WINDOWS_NAME
        try:
            with np.load(path, allow_pickle=False) as content:
                arrays = {name: content[name] for name in _ARRAYS}
            bounds = np.cumsum(arrays["counts"])
            if not len(bounds) or {bounds[-1]} != {len(arrays[name]) for name in ("latents", "motifs", "confidence")}:
                raise DataError(f"{path}: its arrays do not fit together")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path}: no segmented windows to read ({error})") from error
        parts = zip(
            arrays["ids"].tolist(),
            np.split(arrays["motifs"], bounds[:-1]),
            np.split(arrays["confidence"], bounds[:-1]),
            strict=True,
        )
        segmented = [SegmentedTrajectory(name, int(arrays["window"]), motifs, sure) for name, motifs, sure in parts]
        return cls(MotifModel.load(folder / MODEL_NAME), arrays["latents"], segmented)
