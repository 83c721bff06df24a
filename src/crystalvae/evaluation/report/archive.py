"""All crystals of a set as CIFs in one zip file, and the CIFs of single ones."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

from crystalvae.data.batch import CrystalBatch
from crystalvae.data.file_records import cif_text, file_records
from crystalvae.data.writers import SAFE_ID, default_ids


def file_names(ids: Sequence[str]) -> list[str]:
    """Return one file name without suffix for each crystal: its id, or numbers where not all ids can name a file."""
    usable = all(SAFE_ID.fullmatch(name) for name in ids) and len({name.lower() for name in ids}) == len(ids)
    return list(ids) if usable else default_ids(len(ids))


def cif_texts(crystals: CrystalBatch, names: Sequence[str]) -> list[str]:
    """Return the CIF of each crystal, empty where no CIF can hold it (numbers that are not finite, no volume, …)."""
    host = crystals.detach().to("cpu")
    records = file_records(host.atom_types, host.frac_coords, host.lattices, host.num_atoms, names)
    texts = {record.id: cif_text(record) for record in records}
    return [texts.get(name, "") for name in names]


def write_archive(path: Path, texts: Sequence[str], names: Sequence[str], ids: Sequence[str]) -> int:
    """Write CIFs to a zip file, with a table of which file holds which id, and return how many there are.

    The same crystals give the same bytes.
    """
    written = 0
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        rows = ["file,id"]
        for text, name, entry in zip(texts, names, ids, strict=True):
            if text:
                _add(archive, f"{name}.cif", text)
                written += 1
            quoted = entry.replace('"', '""')
            rows.append(f'{name + ".cif" if text else ""},"{quoted}"')
        _add(archive, "index.csv", "\n".join(rows) + "\n")
    return written


def _add(archive: zipfile.ZipFile, name: str, text: str) -> None:
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, text)
