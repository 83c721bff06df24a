"""Published Chemeleon2 checkpoints: read without executing anything, and turned into ours.

Those files pickle live objects beside the weights. The reader below follows the pickle's instructions with a restricted
`find_class`: tensors and plain containers are rebuilt by our own functions, the classes such a file is known to hold
become inert placeholders that only remember their state, and any other name is refused.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from crystalvae.errors import CheckpointError

_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
_INERT_MODULES = ("torch.nn.", "torch.optim.", "omegaconf.", "pymatgen.", "monty.", "src.", "lightning.")
_INERT_NAMES = {("functools", "partial"), ("typing", "Any"), ("torch", "device"), ("pathlib", "PosixPath")}
_CONTAINERS: dict[tuple[str, str], type] = {
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (dict, set, list, tuple)},
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (int, float, str, bool)},
    ("collections", "OrderedDict"): OrderedDict,
}
MAX_ENTRY_BYTES = 8 * 2**30
HEADS = 8
"""Attention heads of the published VAE: no shape tells them."""


class Inert:
    """A stand-in for an object of the file: remembers what it was made of, and does nothing."""

    name = ""

    def __new__(cls, *_: object, **__: object) -> Inert:
        """Take any arguments, as pickles call it."""
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        self.args, self.kwargs = args, kwargs
        self.state: Any = {}
        self.items: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.items[key] = value

    def append(self, value: object) -> None:
        """Accept list items."""
        self.items[len(self.items)] = value


class _Reader(pickle.Unpickler):
    def __init__(self, path: Path, archive: zipfile.ZipFile, prefix: str) -> None:
        instructions = _entry(archive, f"{prefix}/data.pkl", path)
        _check_memo(instructions, path)
        super().__init__(io.BytesIO(instructions))
        self.path, self.archive, self.prefix = path, archive, prefix
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CONTAINERS:
            return _CONTAINERS[(module, name)]
        if (module, name) == ("collections", "defaultdict"):
            return _plain_defaultdict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module.startswith(_INERT_MODULES) or (module, name) in _INERT_NAMES:
            return type(name, (Inert,), {"name": f"{module}.{name}"})
        raise CheckpointError(
            f"{self.path}: refused: its pickle names {module}.{name}, which no published VAE checkpoint needs. "
            "Nothing from the file was executed"
        )

    def persistent_load(self, pid: Any) -> Tensor:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], torch.dtype)):
            raise CheckpointError(f"{self.path}: damaged checkpoint, unknown storage")
        _, dtype, key, _, count = pid
        if key not in self.storages:
            data = _entry(self.archive, f"{self.prefix}/data/{key}", self.path)
            if not isinstance(count, int) or count * dtype.itemsize != len(data):
                raise CheckpointError(f"{self.path}: damaged checkpoint, storage {key} has {len(data)} bytes")
            storage = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
            self.storages[key] = storage
        return self.storages[key]


def _entry(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > min(MAX_ENTRY_BYTES, path.stat().st_size):
        raise CheckpointError(f"{path}: damaged checkpoint, {name} claims {info.file_size} bytes")
    return archive.read(info)


def _check_memo(instructions: bytes, path: Path) -> None:
    # The unpickler makes room for as many objects as the highest number that one is remembered under.
    for code, number, _ in pickletools.genops(instructions):
        if code.name in {"PUT", "BINPUT", "LONG_BINPUT"} and not 0 <= int(number or 0) <= len(instructions):
            raise CheckpointError(f"{path}: damaged checkpoint, its pickle has memo index {number}")


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    if math.prod(size) > storage.numel():
        raise ValueError(f"a tensor of {size} in a storage of {storage.numel()}")
    return torch.as_strided(storage, size, stride, offset)


def _rebuild_parameter(data: Tensor, *_: object) -> Tensor:
    return data


def _plain_defaultdict(*_: object) -> dict[Any, Any]:
    return defaultdict(lambda: None)


def read_inert(path: Path) -> dict[str, Any]:
    """Read a pickled Lightning checkpoint with placeholders for its objects; executes nothing from it."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                refuse(path, f"expected one data.pkl, found {len(pickles)}")
            content = _Reader(path, archive, pickles[0].removesuffix("/data.pkl")).load()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a dict in the checkpoint, found {type(content).__name__}")
    return content


@dataclass(frozen=True, eq=False)
class Published:
    """A published model by our names: weights, the config that builds it, and what is known of its training set."""

    weights: dict[str, Tensor]
    config: dict[str, Any]
    statistics: dict[str, Any]
    kind: str = "vae"


def convert_vae(path: Path, content: Mapping[str, Any]) -> Published:
    """Turn a published VAE into ours: weights renamed, the config read off its objects and shapes."""
    return Published(
        weights=vae_weights(path, content["state_dict"]),
        config=config_of_vae(path, content["state_dict"], content["hyper_parameters"]),
        statistics={"dataset": f"unknown (converted from {path.name})"},
    )


def vae_weights(path: Path, weights: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the weights under our names; `CheckpointError` for what is no named tensor."""
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            refuse(path, f"{str(name)[:80]} is a {type(value).__name__}, expected named tensors")
    return {f"vae.{name}": value.clone() for name, value in weights.items()}


def refuse(path: Path, reason: str) -> NoReturn:
    """Say why a file cannot be read as a published model."""
    raise CheckpointError(f"{path}: neither a crystalvae checkpoint nor a published Chemeleon2 model ({reason})")


def config_of_vae(path: Path, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a published VAE: widths from the shapes, the rest from its objects among `settings`.

    Without them it is the published one: 8 heads.
    """
    if not {"quant_conv.weight", "post_quant_conv.weight"} <= set(weights):
        refuse(path, "the weights have no quant_conv and post_quant_conv")
    predicts = "decoder.atom_types_head.weight" in weights
    optimizer = settings.get("optimizer")
    keywords = optimizer.state[2] if isinstance(optimizer, Inert) and isinstance(optimizer.state, tuple) else {}
    return {
        "encoder": {
            "_target_": "crystalvae.vae_module.encoders.transformer.TransformerEncoder",
            **_transformer(path, "encoder", weights, settings.get("encoder")),
            "coord_features": "linear",
            "lattice_features": "matrix",
            "max_num_elements": weights["encoder.atom_type_embedder.weight"].shape[0],
        },
        "decoder": {
            "_target_": "crystalvae.vae_module.decoders.transformer.TransformerDecoder",
            **_transformer(path, "decoder", weights, settings.get("decoder")),
            "coord_output": "raw",
            "atom_type_input": False,
            "max_num_elements": weights["decoder.atom_types_head.weight"].shape[0] if predicts else 100,
        },
        "latent_dim": weights["post_quant_conv.weight"].shape[1],
        "atom_type_predict": predicts,
        "coord_loss": "mse",
        "bound_lattice": False,
        "loss_weights": None,
        "augmentation": {"translate": False, "rotate": False},
        "noise": None,
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "lr": float(keywords.get("lr", 1e-4)),
            "weight_decay": float(keywords.get("weight_decay", 0.0)),
        },
        "scheduler": None,
    }


def _transformer(path: Path, part: str, weights: Mapping[str, Tensor], module: Inert | None) -> dict[str, Any]:
    layers = {name.split(".")[3] for name in weights if name.startswith(f"{part}.transformer.layers.")}
    final_norm = f"{part}.transformer.norm.weight" in weights
    hidden, d_model = weights[f"{part}.transformer.layers.0.linear1.weight"].shape
    known = {"nhead": HEADS, "dropout": 0.0, "norm_first": final_norm, "activation": "gelu"}
    if module is not None:
        first = module.state["_modules"]["transformer"].state["_modules"]["layers"].state["_modules"]["0"]
        known = {
            "nhead": int(first.state["_modules"]["self_attn"].state["num_heads"]),
            "dropout": float(first.state["_modules"]["dropout"].state["p"]),
            "norm_first": bool(first.state["norm_first"]),
            "activation": _activation(first),
        }
    if known["norm_first"] != final_norm:
        refuse(path, f"{part}: pre-norm layers with a final norm, or post-norm layers without, are what is known")
    return {
        **known,
        "d_model": d_model,
        "num_layers": len(layers),
        "dim_feedforward": hidden,
        "positions": "sinusoidal",
    }


def _activation(layer: Inert) -> str:
    # Published layers hold GELU(approximate="tanh"), but outside training torch.nn.TransformerEncoderLayer takes its
    # fused path, which knows only the exact GELU (`activation_relu_or_gelu` = 2): that is what published results are.
    if layer.state.get("activation_relu_or_gelu") == 2:
        return "gelu"
    return "gelu_tanh" if layer.state["_modules"]["activation"].state["approximate"] == "tanh" else "gelu"
