"""Checkpoints: published ones compute what they must, ours come back as they were, and none runs anything."""

from __future__ import annotations

import builtins
import copy
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch import nn

from crystalvae.checkpoints import bundled
from crystalvae.checkpoints import format as checkpoints
from crystalvae.checkpoints.trusted import check_targets, trusting
from crystalvae.checkpoints.upgrades import UPGRADES
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.canonical import element_order
from crystalvae.data.training_batch import TrainingBatch
from crystalvae.errors import CheckpointError, ConfigError
from crystalvae.prior_module.latent_prior import LatentPrior
from crystalvae.vae_module import VAEModule
from crystalvae.vae_module.decoders.transformer import DecodedCrystals
from tests.published import PublishedVAE, save_published
from tests.samples import assert_same_crystals, random_crystals, tiny_module, tiny_prior

ATOL = 2e-5
REPOSITORY = Path(__file__).resolve().parents[1]


def close(got: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    torch.testing.assert_close(got, expected, atol=ATOL, rtol=0.0, msg=lambda message: f"{name}: {message}")


# ---- published checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dng", "csp"])
def test_published_checkpoints_compute_what_they_must(parity_dir: Path, name: str) -> None:
    """`../shared/parity` holds what the published code computed; its README says how it was made."""
    vae = VAEModule.load_from_checkpoint(parity_dir / f"chemeleon2_{name}.ckpt", weights_only=False)
    facts = torch.load(parity_dir / f"chemeleon2_{name}.expected.pt", weights_only=True)
    inputs, expected = facts["inputs"], facts["expected"]
    crystals = CrystalBatch(**{key: inputs[key] for key in ("atom_types", "frac_coords", "lattices", "num_atoms")})
    for key in ("lengths", "lengths_scaled", "angles_radians"):
        close(getattr(crystals, key), inputs[key], key)
    torch.testing.assert_close(crystals.angles, inputs["angles"], atol=1e-3, rtol=0.0)
    assert torch.equal(crystals.batch, inputs["batch"])
    assert torch.equal(crystals.token_idx, inputs["token_idx"])
    with torch.no_grad():
        encoded = vae.encode(crystals)
        posterior = encoded["posterior"]
        close(encoded["x"], expected["encoder_out"], "encoder_out")
        close(posterior.mean, expected["posterior_mean"], "posterior_mean")
        close(posterior.logvar, expected["posterior_logvar"], "posterior_logvar")
        close(posterior.kl(), expected["posterior_kl"], "posterior_kl")
        encoded["x"] = posterior.mode()
        decoded = vae.decode(encoded)
        assert decoded.keys() == expected["decoded"].keys()
        for key, value in expected["decoded"].items():
            close(decoded[key], value, f"decoded {key}")
        rebuilt = vae.reconstruct(decoded, crystals)
        reconstructed = expected["reconstructed"]
        assert torch.equal(rebuilt.atom_types, reconstructed["atom_types"])
        close(rebuilt.frac_coords, reconstructed["frac_coords"], "reconstructed frac_coords")
        close(rebuilt.lattices, reconstructed["lattices"], "reconstructed lattices")
        # Random weights also say negative lengths; a lattice matrix has their absolute values, as pymatgen's has.
        close(rebuilt.lengths, reconstructed["lengths"].abs(), "reconstructed lengths")
        lengths = decoded["lengths"] * crystals.num_atoms[:, None].pow(1 / 3)
        close(lengths, reconstructed["lengths"], "decoded lengths")
        close(decoded["angles"], torch.deg2rad(reconstructed["angles"]), "decoded angles")
        losses = vae.losses(TrainingBatch.whole(crystals), training=False)
    names = {"loss_kl": "kl_loss"}
    assert {names.get(key, key.removeprefix("loss_")) for key in expected["losses_at_mean"]} <= losses.keys()
    for key, value in expected["losses_at_mean"].items():
        got = losses[names.get(key, key.removeprefix("loss_"))]
        torch.testing.assert_close(got, value, atol=ATOL, rtol=1e-6, msg=key)


@pytest.mark.parametrize("atom_type_predict", [True, False])
@pytest.mark.parametrize(("approximate", "fused"), [("none", True), ("tanh", False)])
def test_converted_checkpoints_equal_torchs_own_modules(
    atom_type_predict: bool, approximate: str, fused: bool, tmp_path: Path
) -> None:
    published = PublishedVAE(atom_type_predict=atom_type_predict, approximate=approximate, fused=fused)
    vae = VAEModule.load_from_checkpoint(save_published(published, tmp_path / "published.ckpt"), weights_only=False)
    crystals = random_crystals()
    expected = published.run(crystals)
    with torch.no_grad():
        encoded = vae.encode(crystals)
        close(encoded["x"], expected["x"], "encoder")
        close(encoded["posterior"].mean, expected["mean"], "mean")
        close(encoded["posterior"].logvar, expected["logvar"], "logvar")
        decoded = vae.decode({**encoded, "x": encoded["posterior"].mode()})
    for key in ("frac_coords", "lattices", "atom_types"):
        if key in expected:
            close(decoded[key], expected[key], key)
    assert ("atom_types" in decoded) == atom_type_predict == vae.atom_type_predict
    assert vae.config["optimizer"]["lr"] == 3e-4
    assert vae.config["optimizer"]["weight_decay"] == 0.01


def test_the_fused_path_of_published_models_is_the_exact_gelu(tmp_path: Path) -> None:
    """Published layers hold GELU(tanh), but torch ran them through a fused path that knows the exact one alone."""
    for fused, activation in ((True, "gelu"), (False, "gelu_tanh")):
        published = PublishedVAE(approximate="tanh", fused=fused)
        vae = VAEModule.load_from_checkpoint(save_published(published, tmp_path / f"{activation}.ckpt"))
        assert vae.config["encoder"]["activation"] == vae.config["decoder"]["activation"] == activation


def test_a_converted_checkpoint_saves_as_ours(tmp_path: Path) -> None:
    converted = VAEModule.load_from_checkpoint(save_published(PublishedVAE(), tmp_path / "published.ckpt"))
    converted.save_checkpoint(tmp_path / "ours.ckpt")
    ours = VAEModule.load_from_checkpoint(tmp_path / "ours.ckpt", weights_only=True)
    assert_same_models(ours, converted)


def test_published_checkpoints_want_weights_only_false(tmp_path: Path) -> None:
    path = save_published(PublishedVAE(), tmp_path / "published.ckpt")
    with pytest.raises(CheckpointError, match="weights_only=False"):
        VAEModule.load_from_checkpoint(path, weights_only=True)


# ---- ours ------------------------------------------------------------------------------------------------------------


def assert_same_models(got: VAEModule, expected: VAEModule) -> None:
    assert got.config == expected.config
    weights = expected.state_dict()
    assert got.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in got.state_dict().items())
    crystals = random_crystals()
    samples = [module.sample(crystals, generator=torch.Generator().manual_seed(0)) for module in (got, expected)]
    assert_same_crystals(*samples, atol=0.0)
    assert_same_crystals(got.reconstruct_crystals(crystals), expected.reconstruct_crystals(crystals), atol=0.0)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of ours."""
    module = tiny_module(loss_weights={"kl": 0.25}, augmentation={"translate": True})
    module.statistics = {"num_atoms": {2: 5, 8: 1}, "dataset": "test"}
    module.save_checkpoint(tmp_path / "ours.ckpt")
    return tmp_path / "ours.ckpt"


@pytest.mark.parametrize(
    "options", [{}, {"atom_type_predict": False}, {"coord_loss": "mse", "decoder": {"coord_output": "raw"}}], ids=str
)
@pytest.mark.parametrize("weights_only", [True, False])
def test_a_checkpoint_gives_back_the_very_same_model(
    options: dict[str, Any], weights_only: bool, tmp_path: Path
) -> None:
    module = tiny_module(**options)
    module.save_checkpoint(tmp_path / "ours.ckpt")
    loaded = VAEModule.load_from_checkpoint(tmp_path / "ours.ckpt", weights_only=weights_only)
    assert not loaded.training
    assert_same_models(loaded, module)


def test_a_checkpoint_is_plain_data_that_describes_itself(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    description = content["crystalvae"]
    assert description["format_version"] == checkpoints.FORMAT_VERSION
    assert description["kind"] == "vae"
    assert description["config"]["loss_weights"] == {"kl": 0.25}
    assert description["statistics"] == {"num_atoms": {2: 5, 8: 1}, "dataset": "test"}
    assert {"python", "torch", "crystalvae"} <= description["versions"].keys()
    assert VAEModule.load_from_checkpoint(saved).statistics["num_atoms"] == {2: 5, 8: 1}
    assert [path.name for path in saved.parent.iterdir()] == ["ours.ckpt"]  # no temporary file stays behind


def test_an_interrupted_write_leaves_the_old_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def cut_short(content: object, file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", cut_short)
    with pytest.raises(KeyboardInterrupt):
        tiny_module(seed=1).save_checkpoint(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == ["ours.ckpt"]


def test_a_checkpoint_loads_on_its_own_from_anywhere(saved: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = """
        import sys, torch
        from crystalvae.data.batch import CrystalBatch
        from crystalvae.vae_module import VAEModule
        vae = VAEModule.load_from_checkpoint("model.ckpt", weights_only=True)
        crystals = vae.sample(CrystalBatch.empty([2, 3]), generator=torch.Generator().manual_seed(5))
        torch.save({"lattices": crystals.lattices, "frac_coords": crystals.frac_coords}, "sampled.pt")
    """
    saved.rename(elsewhere / "model.ckpt")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=False,
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    sampled = torch.load(elsewhere / "sampled.pt", weights_only=True)
    here = VAEModule.load_from_checkpoint(elsewhere / "model.ckpt")
    expected = here.sample(CrystalBatch.empty([2, 3]), generator=torch.Generator().manual_seed(5))
    assert isinstance(expected, CrystalBatch)
    torch.testing.assert_close(sampled["lattices"], expected.lattices)
    torch.testing.assert_close(sampled["frac_coords"], expected.frac_coords)


# ---- hostile files ---------------------------------------------------------------------------------------------------


class Hostile:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


CALLS = {
    "os.system": lambda trace: Hostile(os.system, f"touch {trace}"),
    "builtins.eval": lambda trace: Hostile(builtins.eval, f"__import__('pathlib').Path({str(trace)!r}).touch()"),
    "builtins.exec": lambda trace: Hostile(builtins.exec, f"open({str(trace)!r}, 'w')"),
    "builtins.getattr": lambda trace: Hostile(getattr, Hostile(__import__, "os"), "system"),
    "subprocess.Popen": lambda trace: Hostile(subprocess.Popen, ["touch", str(trace)]),
    "subprocess.call": lambda trace: Hostile(subprocess.call, ["touch", str(trace)]),
    "builtins.open": lambda trace: Hostile(open, str(trace), "w"),
    "pathlib.Path.touch": lambda trace: Hostile(Path.touch, trace),
}


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_hostile_pickles_are_refused_and_run_nothing(name: str, weights_only: bool, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    plain = tmp_path / "hostile.ckpt"
    torch.save({"state_dict": {}, "crystalvae": {}, "payload": CALLS[name](trace)}, plain)
    dressed_up = save_published(PublishedVAE(), tmp_path / "dressed.ckpt", payload=CALLS[name](trace))
    for path in (plain, dressed_up):
        with pytest.raises(CheckpointError, match=r"refused|weights_only=False"):
            VAEModule.load_from_checkpoint(path, weights_only=weights_only)
    assert not trace.exists()


def test_the_hostile_pickles_are_live_ammunition(tmp_path: Path) -> None:
    """Through torch.load itself they do run: the tests above would notice."""
    trace = tmp_path / "trace"
    torch.save(CALLS["os.system"](trace), tmp_path / "hostile.ckpt")
    torch.load(tmp_path / "hostile.ckpt", weights_only=False)
    assert trace.exists()


def test_reducers_of_known_classes_stay_inert(tmp_path: Path) -> None:
    """Classes that a published file may name are placeholders: calling them, or setting their state, does nothing."""
    published = PublishedVAE()
    payload = Hostile(torch.nn.Linear, 10**9, 10**9)
    vae = VAEModule.load_from_checkpoint(save_published(published, tmp_path / "inert.ckpt", payload=payload))
    close(vae.state_dict()["vae.quant_conv.weight"], published.quant_conv.weight.detach(), "quant_conv")


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    """A stride of 0 would make 4 bytes in the file terabytes in memory."""
    published = PublishedVAE()
    published.state_dict = lambda: {
        **nn.Module.state_dict(published),
        "quant_conv.weight": torch.zeros(1).expand(2**40),
    }
    with pytest.raises(CheckpointError, match="damaged"):
        VAEModule.load_from_checkpoint(save_published(published, tmp_path / "bomb.ckpt"))


HOSTILE_CONFIGS = {
    "a function": {"_target_": "os.system", "_args_": ["touch {trace}"]},
    "a function our module imports": {
        "_target_": "crystalvae.checkpoints.format.os.system",
        "_args_": ["touch {trace}"],
    },
    "a function of our own": {"_target_": "crystalvae.checkpoints.format.write", "content": {}, "path": "{trace}"},
    "a class of no use": {"_target_": "crystalvae.checkpoints.format.Path", "_args_": ["{trace}"]},
    "a module alone": {"_target_": "crystalvae.checkpoints.format"},
    "a lookalike": {"_target_": "src.vae_module_of_mine.Encoder"},
    "an interpolated target": {"_target_": "${.real}", "real": "os.system", "_args_": ["touch {trace}"]},
    "an interpolated config": {
        "_target_": "crystalvae.vae_module.encoders.transformer.TransformerEncoder",
        "d_model": "${oc.create:'{_target_: os.system, _args_: [\"touch {trace}\"]}'}",
    },
    "a list further down": {
        "_target_": "crystalvae.vae_module.encoders.transformer.TransformerEncoder",
        "d_model": [{"deep": {"_target_": "builtins.eval", "_args_": ["1"]}}],
    },
    "not a name": {"_target_": 7},
}


def put(value: Any, trace: Path) -> Any:
    if isinstance(value, dict):
        return {key: put(entry, trace) for key, entry in value.items()}
    if isinstance(value, list):
        return [put(entry, trace) for entry in value]
    return value.replace("{trace}", str(trace)) if isinstance(value, str) else value


@pytest.mark.parametrize("name", HOSTILE_CONFIGS)
@pytest.mark.parametrize("part", ["encoder", "decoder", "optimizer"])
def test_hostile_configs_are_refused_and_run_nothing(name: str, part: str, saved: Path, tmp_path: Path) -> None:
    content = torch.load(saved, weights_only=True)
    content["crystalvae"]["config"][part] = put(HOSTILE_CONFIGS[name], tmp_path / "trace")
    torch.save(content, saved)
    with pytest.raises(CheckpointError, match=r"config (asks for|holds an interpolation)"):
        VAEModule.load_from_checkpoint(saved)
    assert not (tmp_path / "trace").exists()


class HomeMadeDecoder(nn.Module):
    """A decoder from outside the package."""

    def __init__(self, *, d_model: int, atom_type_predict: bool) -> None:
        super().__init__()
        self.d_model, self.atom_type_predict, self.atom_type_input = d_model, atom_type_predict, False
        self.head = nn.Linear(d_model, 9)

    def forward(self, tokens: torch.Tensor, crystals: CrystalBatch) -> DecodedCrystals:
        values = self.head(tokens)
        lattice = values[crystals.ptr[:-1], 3:]
        return DecodedCrystals(
            atom_logits=None,
            frac_coords=values[:, :3],
            coord_vectors=None,
            lengths_scaled=lattice[:, :3],
            angles=lattice[:, 3:],
        )


def test_parts_from_elsewhere_load_where_they_are_trusted(tmp_path: Path) -> None:
    parts = {
        "encoder": tiny_module().config["encoder"],
        "decoder": {"_target_": f"{__name__}.HomeMadeDecoder", "d_model": 16},
    }
    with pytest.raises(ConfigError, match=r"decoder: its _target_ .*HomeMadeDecoder.*trusted_targets"):
        VAEModule(**parts, latent_dim=4, atom_type_predict=False)
    with trusting([f"{__name__}."]):
        module = VAEModule(**parts, latent_dim=4, atom_type_predict=False).eval()
    module.save_checkpoint(tmp_path / "ours.ckpt")
    with pytest.raises(CheckpointError, match=r"HomeMadeDecoder.*trusted_targets"):
        VAEModule.load_from_checkpoint(tmp_path / "ours.ckpt")
    loaded = VAEModule.load_from_checkpoint(tmp_path / "ours.ckpt", trusted_targets=(f"{__name__}.",))
    assert_same_models(loaded, module)


def test_trust_is_for_what_is_inside_and_for_whole_names(without_type_checks: None) -> None:
    named = {"schedule": {"_target_": f"{__name__}.HomeMadeDecoder"}}
    with trusting([f"{__name__}."]):
        check_targets(named)
    with pytest.raises(CheckpointError, match="trusted_targets"):
        check_targets(named)
    wrong: list[Any] = [f"{__name__}.", [__name__], ["."], [""], [3]]
    for packages in wrong:
        with pytest.raises(ConfigError, match="trusted_targets: got"), trusting(packages):
            pass


def test_commands_load_parts_from_elsewhere_where_they_are_trusted(tmp_path: Path) -> None:
    """The command in a process of its own, as `trusted_targets` is read where commands start."""
    from tests.test_commands import in_process  # that process imports this module, without pytest's path

    tiny = {**tiny_module().config["encoder"]}
    decoder = {"_target_": "tests.test_checkpoint.HomeMadeDecoder", "d_model": 16}
    with trusting(["tests.test_checkpoint."]):
        module = VAEModule(encoder=tiny, decoder=decoder, latent_dim=4, atom_type_predict=False).eval()
    module.save_checkpoint(tmp_path / "ours.ckpt")
    sample = ["ckpt_path=ours.ckpt", "composition=NaCl", "formula_units=1", "num_samples=2"]
    with pytest.raises(CheckpointError, match=r"trusted_targets=\['tests\.test_checkpoint\.'\]"):
        in_process("sample", *sample, cwd=tmp_path)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "src" / "sample.py"), *sample, "trusted_targets=[tests.test_checkpoint.]"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# ---- damaged files ---------------------------------------------------------------------------------------------------


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = copy.deepcopy(torch.load(path, weights_only=True))
    edit(content)
    torch.save(content, path)


def test_files_that_are_no_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    contents = {
        "empty.ckpt": b"",
        "text.ckpt": b"data_NaCl\n_cell_length_a 5.64\n",
        "old_pickle.ckpt": b"\x80\x02}q\x00.",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            VAEModule.load_from_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"missing.ckpt.*no such"):
        VAEModule.load_from_checkpoint(tmp_path / "missing.ckpt")
    with pytest.raises(CheckpointError, match=r"no such"):
        VAEModule.load_from_checkpoint(tmp_path)
    with zipfile.ZipFile(tmp_path / "other.ckpt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(CheckpointError, match=r"other.ckpt"):
        VAEModule.load_from_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("published", [True, False])
def test_truncated_checkpoints_are_refused(share: float, weights_only: bool, published: bool, saved: Path) -> None:
    if published:
        save_published(PublishedVAE(), saved)
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"ours\.ckpt.*(cut short|damaged)"):
        VAEModule.load_from_checkpoint(saved, weights_only=weights_only)


@pytest.mark.parametrize("published", [True, False])
def test_flipped_bytes_never_surprise(published: bool, saved: Path) -> None:
    """Each loads as it was, or is refused with our own error."""
    if published:
        save_published(PublishedVAE(), saved)
    content = saved.read_bytes()
    generator = torch.Generator().manual_seed(0)
    for position in torch.randint(len(content), (60,), generator=generator).tolist():
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        saved.write_bytes(flipped)
        with suppress(CheckpointError):
            VAEModule.load_from_checkpoint(saved, weights_only=False)


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda c: c["crystalvae"].update(format_version=99), r"format version 99.*reads version \d"),
        (lambda c: c["crystalvae"].pop("format_version"), r"format version None"),
        (lambda c: c["crystalvae"].update(format_version=[1]), r"format version \[1\]"),
        (lambda c: c["crystalvae"].update(kind="policy"), r"'policy'.*'vae' or 'prior'"),
        (lambda c: c["crystalvae"].update(kind="prior"), r"the config of the prior has no VAE"),
        (lambda c: c["crystalvae"].pop("config"), r"no config"),
        (lambda c: c["crystalvae"].pop("statistics"), r"no statistics"),
        (lambda c: c.pop("crystalvae"), r"expected 'crystalvae'"),
        (lambda c: c.pop("state_dict"), r"'state_dict'"),
        (lambda c: c.update(crystalvae="hello"), r"no config"),
        (lambda c: c["crystalvae"]["config"].pop("encoder"), r"encoder"),
        (lambda c: c["crystalvae"]["config"].update(colour="red"), r"colour"),
        (lambda c: c["crystalvae"]["config"].update(latent_dim="eight"), r"does not describe"),
        (lambda c: c["crystalvae"]["config"]["encoder"].update(d_model=17), r"d_model.*17"),
        (lambda c: c["crystalvae"]["config"]["encoder"].update(d_model=10**8), r"encoder.d_model=100000000; expected"),
        (lambda c: c["crystalvae"]["config"].update(encoder="hello"), r"does not describe"),
        (lambda c: c["crystalvae"]["config"].update(latent_dim=5), r"do not fit.*size mismatch"),
        (lambda c: c["state_dict"].pop("vae.quant_conv.weight"), r"do not fit.*Missing.*quant_conv"),
        (lambda c: c["state_dict"].update(extra=torch.zeros(1)), r"do not fit.*Unexpected.*extra"),
        (lambda c: c["state_dict"].update({"vae.quant_conv.weight": 3}), r"vae.quant_conv.weight' are a int"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("weights_only", [True, False])
def test_checkpoints_that_cannot_be_used_say_why(
    edit: Callable[[dict[str, Any]], object], match: str, weights_only: bool, saved: Path
) -> None:
    change(saved, edit)
    with pytest.raises(CheckpointError, match=match):
        VAEModule.load_from_checkpoint(saved, weights_only=weights_only)


def test_pickles_of_something_else_are_refused(tmp_path: Path) -> None:
    """Live objects, but no published VAE."""
    for number, content in enumerate(
        (
            nn.Linear(2, 2),
            {"state_dict": nn.Linear(2, 2).state_dict(), "hyper_parameters": {"encoder": nn.Linear(2, 2)}},
            {"state_dict": PublishedVAE().state_dict(), "hyper_parameters": {"encoder": nn.Linear(2, 2)}},
        )
    ):
        torch.save(content, tmp_path / f"{number}.ckpt")
        with pytest.raises(CheckpointError, match=f"{number}.ckpt.*(expected|neither)"):
            VAEModule.load_from_checkpoint(tmp_path / f"{number}.ckpt")


def test_older_versions_are_upgraded_step_by_step(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def upgrade(kind: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda content: {**content, "crystalvae": {**content["crystalvae"], "kind": kind}}

    monkeypatch.setitem(UPGRADES, -1, upgrade("old"))
    monkeypatch.setitem(UPGRADES, 0, upgrade("vae"))
    expected = VAEModule.load_from_checkpoint(saved)
    change(saved, lambda content: content["crystalvae"].update(format_version=-1))
    assert_same_models(VAEModule.load_from_checkpoint(saved), expected)


# ---- checkpoints of priors -------------------------------------------------------------------------------------------


def save_prior(path: Path, **options: Any) -> LatentPrior:
    module = tiny_prior(conditions=["energy"], **options)
    module.prior.fit_latents(torch.randn(50, 4), torch.rand(50, 4))
    module.vae_module.statistics = {"num_atoms": {2: 5, 4: 1}, "dataset": "test"}
    module.save_checkpoint(path)
    return module


@pytest.mark.parametrize("decodes_elements", [True, False])
def test_a_prior_brings_its_vae_and_samples_the_same(decodes_elements: bool, tmp_path: Path) -> None:
    path = tmp_path / "prior.ckpt"
    module = save_prior(path, atom_type_predict=decodes_elements)
    template = CrystalBatch.empty([3, 5])
    expected = module.sample(template, generator=torch.Generator().manual_seed(1))
    prior, vae = LatentPrior.load_from_checkpoint(path), VAEModule.load_from_checkpoint(path, weights_only=True)
    element_order.cache_clear()  # also where it is first asked for while a model is built without memory
    again = LatentPrior.load_from_checkpoint(path)
    for loaded in (prior, vae, again):
        assert not loaded.training
        assert loaded.statistics == {"num_atoms": {2: 5, 4: 1}, "dataset": "test"}
        got = loaded.sample(template, generator=torch.Generator().manual_seed(1))
        assert_same_crystals(got, expected, atol=0.0)
    torch.testing.assert_close(vae.state_dict(), module.vae_module.state_dict(), atol=0.0, rtol=0.0)
    crystals = random_crystals()
    assert_same_crystals(vae.reconstruct_crystals(crystals), module.vae_module.reconstruct_crystals(crystals))


def test_a_prior_is_plain_data_and_survives_being_saved_as_a_vae(tmp_path: Path) -> None:
    save_prior(tmp_path / "prior.ckpt")
    description = torch.load(tmp_path / "prior.ckpt", weights_only=True)["crystalvae"]
    assert description["kind"] == "prior"
    assert {"vae", "prior", "latents", "optimizer"} <= description["config"].keys()
    vae = VAEModule.load_from_checkpoint(tmp_path / "prior.ckpt")
    vae.save_checkpoint(tmp_path / "vae.ckpt")
    again = VAEModule.load_from_checkpoint(tmp_path / "vae.ckpt")
    assert again.prior is not None
    assert_same_models(again, vae)


def test_kinds_of_checkpoints_are_not_mixed_up(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'vae' model; expected 'prior'"):
        LatentPrior.load_from_checkpoint(saved)
    save_prior(tmp_path / "prior.ckpt")
    change(tmp_path / "prior.ckpt", lambda content: content["crystalvae"].update(kind="flow"))
    with pytest.raises(CheckpointError, match=r"'flow' model; expected 'vae' or 'prior'"):
        VAEModule.load_from_checkpoint(tmp_path / "prior.ckpt")


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (lambda c: c["crystalvae"]["config"].pop("vae"), r"vae|VAE"),
        (lambda c: c["crystalvae"]["config"].update(prior=None), r"prior"),
        (lambda c: c["crystalvae"]["config"]["prior"].update(d_model=17), r"d_model"),
        (lambda c: c["crystalvae"]["config"]["prior"].update(d_model=10**8), r"prior.d_model=100000000; expected"),
        (lambda c: c["crystalvae"]["config"]["prior"].update(conditions=[]), r"do not fit"),
        (lambda c: c["crystalvae"]["config"]["prior"].update(sampler={"steps": -3}), r"sampler\.steps: got -3"),
        (lambda c: c["crystalvae"]["config"]["prior"].update(_target_="os.system"), r"config asks for 'os\.system'"),
        (lambda c: c["crystalvae"]["config"]["vae"]["encoder"].update(_target_="os.system"), r"config asks for"),
        (lambda c: c["crystalvae"]["config"]["prior"].update(_target_="torch.optim.AdamW"), r"prior|does not"),
        (lambda c: c["state_dict"].pop("vae_module.prior.latent_mean"), r"Missing.*latent_mean"),
        (lambda c: c["state_dict"].update(extra=torch.zeros(1)), r"Unexpected.*extra"),
        (lambda c: c["state_dict"].update({7: torch.zeros(1)}), r"damaged checkpoint"),
        (lambda c: c["state_dict"]["vae_module.prior.latent_std"].fill_(torch.nan), r"NaN.*latent_std"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [LatentPrior, VAEModule])
def test_priors_that_cannot_be_used_say_why(
    edit: Callable[[dict[str, Any]], object], match: str, kind: type, tmp_path: Path
) -> None:
    save_prior(tmp_path / "prior.ckpt")
    change(tmp_path / "prior.ckpt", edit)
    with pytest.raises(CheckpointError, match=match):
        kind.load_from_checkpoint(tmp_path / "prior.ckpt")


# ---- bundled models --------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one bundled model, `small`, that is the package's for the time of a test."""
    folder = tmp_path / "bundle"
    save_prior(folder / "small.ckpt")
    digest = hashlib.sha256((folder / "small.ckpt").read_bytes()).hexdigest()
    (folder / "sha256.json").write_text(json.dumps({"small": digest, "gone": "0" * 64}))
    monkeypatch.setattr(bundled, "folder", lambda: folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_bundled_models_are_found_by_name(bundle: Path) -> None:
    assert set(bundled.models()) == {"small", "gone"}
    assert bundled.find("small") == bundle / "small.ckpt"
    assert VAEModule.load_from_checkpoint("small", weights_only=True).prior is not None
    assert LatentPrior.load_from_checkpoint("small").prior.names == ["energy"]
    Path("small").mkdir()  # a folder of that name, such as output_dir=small, is no checkpoint
    assert bundled.find("small") == bundle / "small.ckpt"
    assert bundled.find(bundle / "small.ckpt") == bundle / "small.ckpt"


def test_a_bundled_model_that_was_changed_is_refused(bundle: Path) -> None:
    path = bundle / "small.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"small\.ckpt: not the bundled model small, its sha256 differs"):
        VAEModule.load_from_checkpoint("small")
    with pytest.raises(CheckpointError, match="bundled model gone is missing"):
        LatentPrior.load_from_checkpoint("gone")


def test_a_name_that_is_none_lists_the_bundled_models(bundle: Path) -> None:
    with pytest.raises(CheckpointError, match="smal: no such checkpoint; bundled are gone, small"):
        VAEModule.load_from_checkpoint("smal")


def test_the_bundled_models_are_what_was_published() -> None:
    """Those that come with this copy of the package: unchanged, small, and the one sampled by default has a prior."""
    sizes = [bundled.find(name).stat().st_size for name in bundled.models()]
    assert sum(sizes) < 21e6
    for name in bundled.models():
        vae = VAEModule.load_from_checkpoint(name, weights_only=True)
        assert vae.statistics["num_atoms"]
        assert (vae.prior is None) == ("vae" in name)
