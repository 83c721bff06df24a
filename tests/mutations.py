"""Ways to damage files, for the fuzz: bytes, text with numbers, tables, zip archives and pickles."""

from __future__ import annotations

import csv
import io
import json
import pickletools
import random
import re
import warnings
import zipfile
from typing import Any

import torch

NUMBERS = (
    "1e308",
    "-1e308",
    "1e400",
    "nan",
    "-nan",
    "inf",
    "-1",
    "-4.2",
    "0",
    "1e-300",
    "99999999999999999999",
    "?",
    "x",
)
SYMBOLS = ("Xx", "Qq", "", "D", "Na1+", "1", "Fm", "Uuo", "'", "é", "_", "na", "\x00", "data_", "loop_", "#")
VALUES = (
    None, -1, 0, 3, 2**40, 10**30, float("nan"), float("inf"), 1e308, -0.5, 2.5, True, "", "x", b"bytes", (), [],
    [1, "a"], {}, {"a": {}}, {"_target_": "os.system"}, "os.system", "crystalvae.vae_module.vae.CrystalVAE",
    torch.zeros(3),
)  # fmt: skip
PATHS = (
    "/etc/passwd", "..", "../../x", "local://tmp", "file:///tmp", "~", "x" * 5000, "a\0b", "C:\\x", "/dev/zero", "",
    "precious", "./precious/../precious",
)  # fmt: skip
"""Names that lead to files and folders."""
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.])")
CRYSTAL_WORDS = re.compile(r"(?<=\n)[ \t]*[A-Z][a-z]?(?=\s)|_atom_\w+|_cell_\w+|_symmetry_\w+|loop_|data_")


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, remove or insert bytes anywhere."""
    if not content:
        return bytes([rng.randrange(256)])
    data = bytearray(content)
    start = rng.randrange(len(data))
    length = min(rng.choice((1, 2, 8, 64, 512)), len(data) - start)
    match rng.randrange(6):
        case 0:
            for _ in range(rng.choice((1, 1, 4, 32))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            for _ in range(rng.choice((1, 4, 32))):
                data[rng.randrange(len(data))] = rng.choice((0, 9, 10, 13, 34, 39, 44, 255, rng.randrange(256)))
        case 2:
            del data[start:]
        case 3:
            del data[start : start + length]
        case 4:
            data[start:start] = data[start : start + length] * rng.choice((1, 1, 50))
        case _:
            data[start:start] = rng.randbytes(length)
    return bytes(data)


def damage_text(text: str, rng: random.Random) -> str:
    """Change a number or a word, open a quote, or repeat, remove, exchange or join lines."""
    lines = text.split("\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(9):
        case 0 | 1 | 2:
            return _substitute(text, NUMBER, rng.choice(NUMBERS), rng)
        case 3:
            return _substitute(text, CRYSTAL_WORDS, rng.choice(SYMBOLS), rng)
        case 4:
            position = rng.randrange(len(text) + 1)
            return text[:position] + rng.choice(('"', "'", ";", "\n;", ",", "\t")) + text[position:]
        case 5:
            lines.insert(other, lines[at])
        case 6:
            del lines[at]
        case 7:
            lines[at], lines[other] = lines[other], lines[at]
        case _:
            lines[at : at + 2] = [" ".join(lines[at : at + 2])]
    return "\n".join(lines)


def _substitute(text: str, pattern: re.Pattern[str], new: str, rng: random.Random) -> str:
    found = list(pattern.finditer(text))
    if not found:
        return text
    chosen = rng.choice(found)
    return text[: chosen.start()] + new + text[chosen.end() :]


def damage_row(content: bytes, rng: random.Random) -> tuple[bytes, int]:
    """Damage the crystal or another cell of one row of a CSV, which stays one; return it and the row (from 0)."""
    header, *rows = csv.reader(io.StringIO(content.decode(errors="surrogateescape"), newline=""))
    at, column = rng.randrange(len(rows)), rng.choice((*range(len(header)), *[header.index("cif")] * len(header)))
    rows[at][column] = damage_text(rows[at][column], rng).replace("\x00", "")
    return _table(header, rows), at


def damage_table(content: bytes, rng: random.Random) -> bytes:  # noqa: C901  one case a kind of damage
    """Exchange, rename, repeat or remove columns, headers or rows of a CSV."""
    header, *rows = csv.reader(io.StringIO(content.decode(errors="surrogateescape"), newline=""))
    width = min(map(len, (header, *rows)))
    if not width or not rows:
        return damage_bytes(content, rng)
    first, second, row = rng.randrange(width), rng.randrange(width), rng.randrange(len(rows))
    match rng.randrange(8):
        case 0:
            for line in (header, *rows):
                line[first], line[second] = line[second], line[first]
        case 1:
            header[first], header[second] = header[second], header[first]
        case 2:
            for line in (header, *rows)[rng.randrange(2) :]:
                del line[first]
        case 3:
            header[first] = rng.choice((header[second], "", "cif", "a.b", "material_id", "\n"))
        case 4:
            rows.append(list(rows[row]))
        case 5:
            del rows[row:]
        case 6:
            rows[row].extend(["x"] * rng.randrange(1, 4))
        case _:
            del rows[row][first:]
    return _table(header, rows)


def _table(header: list[str], rows: list[list[str]]) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return file.getvalue().encode(errors="surrogateescape")


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def damage_archive(content: bytes, rng: random.Random) -> bytes:
    """Change the pickle inside a zip archive, or the names, order and sizes of its entries, with valid checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    pickles = [i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl")]
    at, other = rng.randrange(len(entries)), rng.randrange(len(entries))
    match rng.randrange(9):
        case 0 | 1 | 2 | 3:
            name, data = entries[pickles[0]]
            entries[pickles[0]] = (name, damage_pickle(data, rng))
        case 4:
            name, data = entries[pickles[0]]
            entries[pickles[0]] = (name, damage_bytes(data, rng))
        case 5:
            entries[at] = (entries[at][0], damage_bytes(entries[at][1], rng))
        case 6:
            entries[at], entries[other] = (entries[at][0], entries[other][1]), (entries[other][0], entries[at][1])
        case 7:
            del entries[at]
        case _:
            entries[at] = (rng.choice(("../x", "x/data.pkl", "", entries[other][0] + "x")), entries[at][1])
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return file.getvalue()


def damage_pickle(data: bytes, rng: random.Random) -> bytes:
    """Change an opcode, an integer, a float or a name in a pickle, or exchange, repeat or drop an instruction."""
    operations = list(pickletools.genops(data))
    starts = [position for _, _, position in operations] + [len(data)]
    kind = rng.randrange(6)
    names = {
        0: None,
        1: ("BININT", "BININT1", "BININT2"),
        2: ("BINFLOAT",),
        3: ("BINUNICODE", "SHORT_BINUNICODE"),
        4: ("GLOBAL",),
        5: None,
    }[kind]
    candidates = [i for i, (code, _, _) in enumerate(operations) if names is None or code.name in names]
    if not candidates:
        return damage_bytes(data, rng)
    at = rng.choice(candidates)
    before, piece, after = data[: starts[at]], data[starts[at] : starts[at + 1]], data[starts[at + 1] :]
    match kind:
        case 0:
            piece = bytes([ord(rng.choice(pickletools.opcodes).code)]) + piece[1:]
        case 1:
            piece = b"J" + rng.choice((-1, 0, 1, 7, 2**31 - 1, -(2**31), 10**6)).to_bytes(4, "little", signed=True)
        case 2:
            piece = b"G" + rng.choice((b"\x7f\xf8" + b"\0" * 6, b"\xff\xf0" + b"\0" * 6, b"\x7f\xef" + b"\xff" * 6))
        case 3:
            word = rng.choice(
                (b"", b"x", b"os.system", b"cuda:9", b"\xff\xfe", b"9" * 50, b"_target_", b"crystalvae.errors.X")
            )
            piece = b"X" + len(word).to_bytes(4, "little") + word
        case 4:
            names = (
                b"os\nsystem",
                b"builtins\neval",
                b"torch\nload",
                b"torch\nFloatStorage",
                b"collections\nOrderedDict",
            )
            piece = b"c" + rng.choice((*names, b"torch.nn.modules.linear\nLinear", b"builtins\nint")) + b"\n"
        case _:
            piece = rng.choice((b"", piece * 2, piece * 20))
    return before + piece + after


def damage_value(content: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Replace, rename or remove one value of a checkpoint's plain data, however deep."""
    place: Any = content
    copied = place = dict(content)
    while True:
        key = rng.choice(list(place))
        value = place[key]
        if isinstance(value, dict) and value and rng.random() < 0.9:
            place[key] = place = dict(value)
            continue
        if isinstance(value, list) and value and isinstance(value[0], dict) and rng.random() < 0.9:
            place[key] = value = list(value)
            value[0] = place = dict(value[0])
            continue
        if isinstance(value, torch.Tensor) and rng.random() < 0.7:
            place[key] = _damage_tensor(value, rng)
        elif rng.random() < 0.15:
            del place[key]
        elif rng.random() < 0.15:
            place[rng.choice(("x", 7, None, f"{key}x"))] = place.pop(key)
        else:
            place[key] = knotted(rng) if rng.random() < 0.3 else rng.choice(VALUES)
        return copied


def knotted(rng: random.Random) -> Any:
    """Return a value that is within itself, shared without end, very deep or very long, or leads to a file."""
    match rng.randrange(7):
        case 0:
            cyclic: dict[str, Any] = {"_target_": "crystalvae.vae_module.encoders.mlp.MLPEncoder", "d_model": 8}
            cyclic["inner"] = cyclic
            return cyclic
        case 1:
            endless: list[Any] = []
            endless.append(endless)
            return endless
        case 2:
            shared: Any = [1]
            for _ in range(60):
                shared = [shared, shared]
            return shared
        case 3:
            deep: Any = {}
            for _ in range(rng.choice((40, 200, 400))):
                deep = {"a": deep}
            return deep
        case 4:
            return rng.choice((10**5, 10**7, 10**9, 2**62, -(10**9)))
        case 5:
            return [0] * 10**5
        case _:
            return rng.choice(PATHS)


def damage_json(content: bytes, rng: random.Random) -> bytes:
    """Put a class to import, a huge array, something deep or of another type anywhere into a JSON text."""
    value = json.loads(content)
    place = value
    while True:
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.85:
            place = place[key]
            continue
        place[key] = rng.choice((
            {"@module": "payload", "@class": "P"}, {"@module": "os", "@class": "system", "args": ["touch trace"]},
            {"__ndarray__": [[10**12], "float64", []]}, {"__ase_objtype__": "atoms", "numbers": "x"}, None, True, -1,
            10**400, 1e308, "x", [], {}, [[[]]], "1e5", {"@module": "fsspec.implementations.local", "@class": "x"},
        ))  # fmt: skip
        return json.dumps(value).encode()


def damage_zip(content: bytes, rng: random.Random) -> bytes:
    """Damage, rename, repeat or blow up the entries of a zip of crystals."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(entries))
    name, data = entries[at]
    match rng.randrange(6):
        case 0:
            entries[at] = (name, damage_bytes(data, rng))
        case 1:
            entries[at] = (rng.choice(("../../x.cif", "/etc/x.cif", "a\\b.cif", ".cif", "x" * 300 + ".cif")), data)
        case 2:
            entries.append((name, data))
        case 3:
            entries[at] = (name, data + b"\n# " + b" " * 10**7)
        case 4:
            entries[at] = (name, b"")
        case _:
            entries[at] = (f"{name}/", data)
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for entry, text in entries:
            archive.writestr(entry, text)
    return file.getvalue() if rng.random() < 0.8 else damage_bytes(file.getvalue(), rng)


def _damage_tensor(value: torch.Tensor, rng: random.Random) -> torch.Tensor:
    if value.layout != torch.strided or not value.ndim:
        return torch.zeros(2, 2)
    match rng.randrange(7):
        case 0:
            return torch.full_like(value, torch.nan)
        case 1:
            return torch.full_like(value, 1e30)
        case 2:
            return value.to(rng.choice((torch.float64, torch.float16, torch.int64, torch.complex64, torch.bool)))
        case 3:
            return value[..., :-1]
        case 4:
            return value.to_sparse()
        case 5:
            return torch.zeros(1).expand(2**20, 2**20)
        case _:
            return value.flatten()[:1].expand(value.shape)
