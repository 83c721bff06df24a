"""Where crystals come from: each source gives the splits train, val and test, from its cache where it has one."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch

from crystalvae.checks import check_switch
from crystalvae.data.cif_files import cif_paths
from crystalvae.data.dataset import READER_VERSION, CrystalDataset
from crystalvae.data.dataset_file import cached
from crystalvae.data.file_splits import FILE_SPLITS, FileSplit, divide, frame_files, joined, warn_of_motion
from crystalvae.data.readers import check_readable, read_crystals
from crystalvae.data.tables import TABLE_SUFFIXES
from crystalvae.errors import ConfigError, DataError
from crystalvae.files import files_key

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@runtime_checkable
class Source(Protocol):
    """What the datamodule asks of a source."""

    name: str

    def load(self, split: Split) -> CrystalDataset:
        """Return one split; `DataError` where it cannot be had."""
        ...


def cache_root(cache_dir: str | os.PathLike[str] | None) -> Path:
    """Return where caches live: as given, or `CRYSTALVAE_CACHE_DIR`, or the user's cache folder."""
    if cache_dir is None:
        import platformdirs

        cache_dir = os.environ.get("CRYSTALVAE_CACHE_DIR") or platformdirs.user_cache_dir("crystalvae", appauthor=False)
    return Path(cache_dir).expanduser()


class TableSource:
    """A folder with `train`, `val` and `test` tables in CDVAE's format, such as perov_5, carbon_24 or your own.

    `data_dir` holds train.csv, val.csv and test.csv (or .csv.gz, .feather, .parquet); `files` names single tables
    instead, by split. Splits without a file are only missed when asked for.
    """

    def __init__(
        self,
        *,
        name: str,
        data_dir: str | None = None,
        files: dict[str, str | None] | None = None,
        max_atoms: int | None = None,
        strict: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        self.name, self.max_atoms, self.strict = name, max_atoms, check_switch("data.source.strict", strict)
        self.data_dir = Path(data_dir).expanduser() if data_dir else None
        self.files = {split: Path(path).expanduser() for split, path in (files or {}).items() if path}
        unknown = set(self.files) - set(SPLITS)
        if unknown:
            raise ConfigError(f"data.source.files: got {', '.join(sorted(unknown))}; expected {', '.join(SPLITS)}")
        self.cache = cache_root(cache_dir)

    def path(self, split: Split) -> Path:
        """Return the table of a split, or raise `DataError` that says where it was looked for."""
        if split in self.files:
            return self.files[split]
        if self.data_dir is None:
            raise DataError(
                f"{self.name}, split {split}: no files given. Set data.source.data_dir=… to a folder with {split}.csv, "
                f"or data.source.files.{split}=… to a table in CDVAE's format"
            )
        return self.find(self.data_dir, split)

    def find(self, folder: Path, split: Split) -> Path:
        """Return the table of a split in a folder, whatever its kind."""
        found = [folder / f"{split}{suffix}" for suffix in TABLE_SUFFIXES if (folder / f"{split}{suffix}").is_file()]
        if not found:
            present = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) if folder.is_dir() else "no folder"
            raise DataError(
                f"{self.name}, split {split}: no {split}.csv (.csv.gz, .feather, .parquet) in {folder} ({present})"
            )
        return found[0]

    def load(self, split: Split) -> CrystalDataset:
        """Return a split, read from its table once and from the cache afterwards."""
        path = self.path(split)
        if not path.is_file():
            raise DataError(f"{self.name}, split {split}: no such file {path}")
        options = {"max_atoms": self.max_atoms, "strict": self.strict, "reader": READER_VERSION}
        target = self.cache / self.name / f"{split}-{files_key([path], **options)}.safetensors"
        return cached(target, lambda: _read(path, self.max_atoms, self.strict))


def _read(path: Path, max_atoms: int | None, strict: bool, *, niggli: bool = True) -> CrystalDataset:
    log.info("reading %s", path)
    return read_crystals(path, max_atoms=max_atoms, niggli=niggli, unique_ids=True, strict=strict)


class MP20(TableSource):
    """MP-20 (Xie et al. 2022): from `data_dir`, or downloaded on first use into the cache, checked by hash."""

    def __init__(
        self,
        *,
        name: str = "mp_20",
        data_dir: str | None = None,
        max_atoms: int | None = 20,
        strict: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(name=name, data_dir=data_dir, max_atoms=max_atoms, strict=strict, cache_dir=cache_dir)

    def path(self, split: Split) -> Path:
        """Return the CSV of a split, from `data_dir` where that is set, else from the download."""
        if self.data_dir is not None:
            return self.find(self.data_dir, split)
        from crystalvae.data.mp20 import fetch_mp20

        return fetch_mp20(self.cache / self.name / "download", [split])[split]


class FileSource:
    """A folder of CIFs, a file that ASE reads, or a folder of such files, divided into train, val and test.

    `split` says how: `random` (by `seed`), `contiguous` (of each file the first crystals for train, the last for test)
    or `by_file` (whole files, by `seed`). `niggli` reduces cells and turns them into the standard orientation. For the
    frames of one motion both defaults mislead, and a warning says so: neighbours, which are nearly the same crystal,
    come to lie in different splits, and cells that are reduced one by one jump.
    """

    def __init__(
        self,
        *,
        name: str,
        path: str | None,
        split: FileSplit = "random",
        niggli: bool = True,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
        max_atoms: int | None = None,
        strict: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        if not path:
            raise ConfigError(
                "data.source.path: got nothing; expected a folder of CIFs, a table, JSON, or a file that ASE reads: "
                "data=files data.source.path=…"
            )
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ConfigError(
                f"data.source: got val_fraction {val_fraction} and test_fraction {test_fraction}; expected shares of "
                "at least 0 that leave something to train on"
            )
        if split not in FILE_SPLITS:
            raise ConfigError(f"data.source.split: got {split!r}; expected one of {', '.join(FILE_SPLITS)}")
        if not isinstance(niggli, bool):
            raise ConfigError(f"data.source.niggli: got {niggli!r}; expected true or false")
        self.name, self.source = name, Path(path).expanduser()
        self.split: FileSplit = split
        self.niggli = niggli
        self.fractions, self.seed = {"val": val_fraction, "test": test_fraction}, seed
        self.max_atoms, self.strict = max_atoms, check_switch("data.source.strict", strict)
        self.cache = cache_root(cache_dir)

    def load(self, split: Split) -> CrystalDataset:
        """Return the crystals of a split, in the order of the source."""
        check_readable(self.source)
        cifs = cif_paths(self.source) if self.source.is_dir() else []
        files = frame_files(self.source) if self.source.is_dir() and not cifs else [self.source]
        datasets = [self._read(path, cifs or [path]) for path in files]
        warn_of_motion(datasets, files, split=self.split, niggli=self.niggli)
        everything = joined(datasets, files)
        sizes = [1] * len(everything) if cifs else [len(dataset) for dataset in datasets]
        if cifs and self.split == "contiguous":
            sizes = [len(everything)]  # in the order of their names
        rows = divide(sizes, self.fractions, split=self.split, seed=self.seed, source=str(self.source))[split]
        if not rows:
            raise DataError(f"{self.source}: no crystals left for split {split} of {len(everything)}")
        return everything.subset(rows)

    def _read(self, path: Path, files: list[Path]) -> CrystalDataset:
        options = {"max_atoms": self.max_atoms, "strict": self.strict, "reader": READER_VERSION}
        if not self.niggli:
            options["niggli"] = False

        return cached(
            self.cache / self.name / f"all-{files_key(files, **options)}.safetensors",
            lambda: _read(path, self.max_atoms, self.strict, niggli=self.niggli),
        )


class PrototypeSource:
    """Crystals grown from the AFLOW prototypes inside pymatgen: no download, split by prototype family."""

    def __init__(
        self,
        *,
        name: str = "prototypes",
        num_crystals: int = 6000,
        max_atoms: int = 20,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        self.name, self.num_crystals, self.max_atoms, self.seed = name, num_crystals, max_atoms, seed
        self.cache = cache_root(cache_dir)

    def load(self, split: Split) -> CrystalDataset:
        """Return a split, built once and from the cache afterwards."""
        from crystalvae.data.prototypes.build import PROTOTYPES_VERSION

        key = f"v{PROTOTYPES_VERSION}-n{self.num_crystals}-a{self.max_atoms}-s{self.seed}"
        paths: dict[Split, Path] = {name: self.cache / self.name / f"{name}-{key}.safetensors" for name in SPLITS}
        return cached(paths[split], lambda: self._build(paths, split))

    def _build(self, paths: dict[Split, Path], split: Split) -> CrystalDataset:
        from crystalvae.data.dataset_file import save_dataset
        from crystalvae.data.prototypes.build import build_prototypes

        log.info("building %d crystals from the AFLOW prototypes", self.num_crystals)
        built = build_prototypes(seed=self.seed, num_crystals=self.num_crystals, max_atoms=self.max_atoms)
        datasets = {name: CrystalDataset(crystals, ids) for name, (ids, crystals) in built.items()}
        for name, path in paths.items():
            if name != split and not path.is_file():
                try:
                    save_dataset(datasets[name], path)
                except OSError as error:
                    log.warning("could not keep the dataset cache at %s (%s)", path, error)
        return datasets[split]


def atom_count_distribution(num_atoms: Sequence[int]) -> dict[int, int]:
    """Return how many crystals have each number of atoms, by number of atoms."""
    values, counts = torch.as_tensor(num_atoms).unique(return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
