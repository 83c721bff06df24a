"""Crystals of a latent-space operation as files: a series of CIFs, or one trajectory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.writers import write_crystals


def write_series(
    crystals: CrystalBatch,
    output_dir: Path | str,
    *,
    formats: Sequence[str] = ("cif", "extxyz"),
    columns: Mapping[str, Sequence[object]] | None = None,
    ids: Sequence[str] | None = None,
    overwrite: bool = False,
    info: Mapping[str, object] | None = None,
    pictures: Mapping[str, Callable[[Path], object]] | None = None,
) -> list[Path]:
    """Write crystals in their order and return the paths: `0000.cif`, … and one trajectory `samples.extxyz`.

    `samples.csv` has a row per crystal: `columns`, then the crystals' properties (fraction, offset, distance, predicted
    values …). Other formats and errors are those of `crystalvae.data.writers.write_crystals`.
    """
    import pandas as pd

    table = pd.DataFrame(dict(columns or {}), index=range(len(crystals)))
    for name, values in crystals.detach().to("cpu").properties.items():
        table[name] = values.numpy()
    return write_crystals(
        crystals, output_dir, table=table, formats=formats, ids=ids, overwrite=overwrite, info=info, pictures=pictures
    )
