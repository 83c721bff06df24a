"""The documentation keeps its word: links, defaults, signatures, experiments and the tutorial."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

from crystalvae.build import build
from crystalvae.commands.main import COMMANDS
from crystalvae.commands.precision import choose_precision
from crystalvae.data.augmentation import InputNoise
from crystalvae.data.batch import CrystalBatch
from crystalvae.data.loader import CrystalLoader
from crystalvae.data.writers import write_crystals
from crystalvae.evaluation.matching.section import reconstruction_metrics
from crystalvae.evaluation.parallel.runner import Runner
from crystalvae.evaluation.validity.structure import describe
from crystalvae.prior_module.composition_model import CompositionModel
from crystalvae.prior_module.diffusion import DiffusionSamplerOptions
from crystalvae.prior_module.flow import SamplerOptions
from crystalvae.prior_module.latent_prior import LatentPrior
from crystalvae.vae_module.conditions.values import CLASSES, COMPUTED
from crystalvae.vae_module.objectives.elbo import PUBLISHED_WEIGHTS
from tests.samples import random_crystals, tiny_config, tiny_module, tiny_prior_config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
PAGES = sorted((ROOT / "docs").glob("*.md"))
EXPERIMENT_FILES = sorted(
    path for path in (CONFIGS / "experiment").glob("**/*.yaml") if "emt_demo" not in {path.stem, path.parent.name}
)  # what is left out is for commands that train neither a VAE nor a prior
EXPERIMENTS = [path.relative_to(CONFIGS / "experiment").with_suffix("").as_posix() for path in EXPERIMENT_FILES]
PRIOR_EXPERIMENTS = [
    name
    for name, path in zip(EXPERIMENTS, EXPERIMENT_FILES, strict=True)
    if "prior_module" in yaml.safe_load(path.read_text(encoding="utf-8"))
]
TINY_PRIOR = [
    "vae_ckpt_path=x",
    "prior_module.prior.d_model=16",
    "prior_module.prior.nhead=2",
    "prior_module.prior.num_layers=1",
    "trainer.accelerator=cpu",
]
TINY = [
    *(f"vae_module.{part}.d_model=16" for part in ("encoder", "decoder")),
    *(f"vae_module.{part}.nhead=2" for part in ("encoder", "decoder")),
    *(f"vae_module.{part}.num_layers=1" for part in ("encoder", "decoder")),
    "trainer.accelerator=cpu",
]


def compose(name: str, *overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose(name, list(overrides))


# ---- links ----------------------------------------------------------------------------------------------------------


def prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path):
    if not page.is_file():
        pytest.skip(f"no {page.name} in this copy")
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_every_page_is_on_the_map():
    linked = set(re.findall(r"\]\(([\w.-]+\.md)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in PAGES} - {"index.md"} <= linked


# ---- tables of options ----------------------------------------------------------------------------------------------


def option_tables() -> Iterator[tuple[str, str, str, str]]:
    """Page, config file, key and default of every row of a table that follows a `<!-- defaults: FILE -->`."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for config, table in re.findall(r"<!-- defaults: (\S+) -->\n\n((?:\|.*\n)+)", text):
            head, _, *rows = ([cell.strip().strip("`") for cell in row.split("|")[1:-1]] for row in table.splitlines())
            # One column a file where the files of a folder share a table; "–" where a file has no such key.
            files = [config.replace("*", name) for name in head[1:-1]] if "*" in config else [config]
            for row in rows:
                for file, default in zip(files, row[1:], strict=False):
                    if default != "–":
                        yield page.name, file, row[0], default


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


OPTIONS = list(option_tables())
FAMILIES = [
    *(f"vae_module/encoder/{name}.yaml" for name in ("transformer", "cgcnn", "cgcnn_residual", "mlp", "gru")),
    *(f"vae_module/decoder/{name}.yaml" for name in ("transformer", "mlp", "gru")),
]
MODULES = ("vae_module", "prior_module")
OPTIMIZERS = [f"{module}/optimizer/{name}.yaml" for module in MODULES for name in ("adamw", "muon")]
SCHEDULERS = [f"vae_module/scheduler/{name}.yaml" for name in ("cosine", "step", "plateau")]
BOTTLENECKS = [f"vae_module/bottleneck/{name}.yaml" for name in ("vq", "hierarchical")]
OBJECTIVES = [
    *(f"vae_module/objective/{name}.yaml" for name in ("elbo", "free_bits", "capacity")),
    *(f"vae_module/objective/schedule/{name}.yaml" for name in ("none", "linear", "sigmoid", "cyclical")),
]
PRIOR = "prior_module/prior_module.yaml"
PRIORS = [f"prior_module/prior/{name}.yaml" for name in ("flow", "diffusion", "symmetric")]
WHOLE = [
    *PRIORS,
    *("vae_module/vae_module.yaml", PRIOR, "sample.yaml", "evaluate.yaml", "train_vae.yaml", "train_prior.yaml"),
    *("cluster.yaml", "latent.yaml", "train_predictor.yaml", "predictor/predictor.yaml"),
]
TABULATED = [
    *(*FAMILIES, *OBJECTIVES, *BOTTLENECKS, *OPTIMIZERS, *SCHEDULERS, *WHOLE),
    *("trainer/default.yaml", "callbacks/prior.yaml", "condition/crystal_system.yaml"),
]


def test_every_table_of_options_was_found():
    assert {config for _, config, _, _ in OPTIONS} == {f"configs/{name}" for name in TABULATED}


@pytest.mark.parametrize(("page", "config", "key", "default"), OPTIONS, ids=str)
def test_documented_options_have_the_documented_default(page: str, config: str, key: str, default: str):
    value: Any = OmegaConf.to_container(OmegaConf.load(ROOT / config), resolve=False)
    for part in key.split("."):
        assert part in value, f"{page}: {config} has no {key}"
        value = value[part]
    expected = default if default == "???" else as_yaml(default)
    assert (type(value), value) == (type(expected), expected)


def as_yaml(text: str) -> Any:
    """Read one value as OmegaConf does: 1.0e-5 is a number, ${…} a string."""
    return text if "${" in text else OmegaConf.to_container(OmegaConf.create(f"x: {text}"))["x"]  # type: ignore[index,call-overload]


@pytest.mark.parametrize("name", [*FAMILIES, *OBJECTIVES, *BOTTLENECKS, *OPTIMIZERS, *SCHEDULERS, *WHOLE])
def test_every_option_is_documented(name: str):
    config = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
    keys = set(leaves({key: value for key, value in config.items() if key not in {"defaults", "hydra"}}))
    documented = {key for _, file, key, _ in OPTIONS if file == f"configs/{name}"}
    assert {key for key in keys if not key.rpartition(".")[2].startswith("_")} == documented


# ---- configs and constructors ---------------------------------------------------------------------------------------


def parts(config: Mapping[str, Any], name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "_target_" in config:
        yield name, config
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from parts(value, f"{name}.{key}")


def own_parts() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("CACHE_DIR", "MP20_DIR", "PEROV_5_DIR", "CARBON_24_DIR", "MPTS_52_DIR"):
            patch.delenv(f"CRYSTALVAE_{variable}", raising=False)
        families = (CONFIGS / name for name in [*FAMILIES, *OBJECTIVES, *BOTTLENECKS, *OPTIMIZERS])
        wholes = (CONFIGS / name for name in ("vae_module/vae_module.yaml", PRIOR, "predictor/predictor.yaml"))
        for path in (*wholes, *families, *sorted((CONFIGS / "data").glob("*.yaml"))):
            group = path.parent.name
            whole: Any = OmegaConf.to_container(OmegaConf.create({group: OmegaConf.load(path)}), resolve=True)
            for name, part in parts(whole[group], path.stem):
                if part["_target_"].startswith("crystalvae."):
                    yield pytest.param(group, part, id=name)


def parameters_of(part: Any) -> dict[str, inspect.Parameter]:
    """The keywords that a part takes; those that it hands to its base are the base's."""
    taken = dict(inspect.signature(part).parameters)
    handed_on = [name for name, parameter in taken.items() if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    for name in handed_on:
        del taken[name]
    return {**parameters_of(part.__base__), **taken} if handed_on else taken


DECIDED_BY_CONFIG = {("data", "eval_batch_size"), ("data", "name"), ("prior_module", "conditions")}


@pytest.mark.parametrize(("group", "part"), list(own_parts()))
def test_defaults_of_configs_and_constructors_agree(group: str, part: Mapping[str, Any]):
    parameters = parameters_of(get_method(part["_target_"]))
    given = {key: value for key, value in part.items() if not key.startswith("_") and key != "defaults"}
    assert set(given) <= set(parameters), "keys that the constructor does not take"
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty or key not in given:
            continue
        value = given[key]
        if isinstance(value, Mapping) or (group, key) in DECIDED_BY_CONFIG:
            continue  # a part of its own; or what each data set decides for itself
        assert (tuple(value) if isinstance(value, list) else value) == parameter.default, key


def test_options_of_parts_that_are_dicts_agree_with_the_code():
    config: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "vae_module" / "vae_module.yaml"))
    assert config["loss_weights"] == {**PUBLISHED_WEIGHTS, "kl": None}, "the objective says that of the KL"
    assert InputNoise(**config["noise"]) == InputNoise()
    prior: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / PRIOR))
    flow: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / PRIORS[0]))
    assert SamplerOptions(**flow["sampler"]) == SamplerOptions()
    symmetric: Any = OmegaConf.load(CONFIGS / "prior_module/prior/symmetric.yaml")
    assert set(flow["sampler"]) < set(symmetric["sampler"]) == {field.name for field in fields(SamplerOptions)}
    module = LatentPrior(**tiny_prior_config())
    assert (module.time, module.condition_dropout) == (prior["time"], prior["condition_dropout"])
    composition = set(inspect.signature(CompositionModel).parameters) - {"max_num_elements"}
    assert composition == set(flow["composition"])


def test_every_option_of_the_prior_is_a_config_key():
    config: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / PRIOR))
    assert set(inspect.signature(LatentPrior).parameters) - {"vae", "prior", "optimizer"} <= set(config)
    assert {"optimizer": "muon"} in config["defaults"]
    # What the VAE decides is not asked again.
    for name in PRIORS:
        prior: Any = OmegaConf.load(CONFIGS / name)
        assert set(parameters_of(get_method(prior["_target_"]))) - {"latent_dim", "elements_given"} <= set(prior)


def test_every_sampler_option_and_condition_can_be_asked_for():
    config: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "sample.yaml"))
    assert set(config["sampler"]) == {
        field.name for options in (SamplerOptions, DiffusionSamplerOptions) for field in fields(options)
    }
    prior: Any = OmegaConf.load(CONFIGS / "experiment" / "mp_20" / "prior_small.yaml")
    assert {*prior.prior_module.prior.conditions, *CLASSES, *COMPUTED} == set(config["conditions"])


@pytest.mark.parametrize("name", [*FAMILIES, *BOTTLENECKS])
def test_every_option_of_the_model_is_a_config_key(name: str):
    part: Any = OmegaConf.load(CONFIGS / name)
    # What is an option of the whole model, which hands it to its parts.
    whole = {"atom_type_predict", "latent_dim", "d_condition"}
    assert set(parameters_of(get_method(part["_target_"]))) - whole <= set(part)


def test_every_family_is_tabulated():
    files = {path.relative_to(CONFIGS).as_posix() for path in (CONFIGS / "vae_module").glob("*coder/*.yaml")}
    # What only chooses another width of a family has no options of its own.
    assert {name for name in files if "_target_" in yaml.safe_load((CONFIGS / name).read_text())} == set(FAMILIES)
    bottlenecks = {f"vae_module/bottleneck/{path.name}" for path in (CONFIGS / "vae_module/bottleneck").glob("*.yaml")}
    assert bottlenecks - {"vae_module/bottleneck/gaussian.yaml"} == set(BOTTLENECKS)  # the Gaussian has no options


@pytest.mark.parametrize("experiment", sorted(set(EXPERIMENTS) - set(PRIOR_EXPERIMENTS)))
def test_experiments_compose_and_build(experiment: str, tmp_path: Path):
    config = compose("train_vae", f"experiment={experiment}", f"output_dir={tmp_path}", *TINY)
    assert config.name == experiment
    module = build("vae_module", config.vae_module)
    assert module.atom_type_predict == ("csp" not in experiment and "symmetric" not in experiment)
    assert module.vae.decoder.atom_type_input != module.atom_type_predict
    datamodule = build("data", config.data)
    assert datamodule.source.name == experiment.partition("/")[0]
    for entry in config.callbacks.values():
        build("callbacks", entry)
    config.trainer.precision = choose_precision(config.trainer.precision, module, "cpu")
    trainer = build("trainer", config.trainer, logger=False, enable_checkpointing=False, default_root_dir=str(tmp_path))
    assert trainer.max_epochs == config.trainer.max_epochs


@pytest.mark.parametrize("experiment", PRIOR_EXPERIMENTS)
def test_experiments_of_priors_compose_and_build(experiment: str, tmp_path: Path):
    config = compose("train_prior", f"experiment={experiment}", f"output_dir={tmp_path}", *TINY_PRIOR)
    assert config.name == experiment
    assert config.data.canonical
    vae = tiny_config(atom_type_predict=experiment.endswith("dng"))
    module = build("prior_module", OmegaConf.create({**config.prior_module, "vae": vae}))
    assert isinstance(module, LatentPrior)
    assert (module.prior.composition is None) == experiment.endswith(("dng", "symmetric_small", "gene_small"))
    assert build("data", config.data).source.name == experiment.partition("/")[0]
    for entry in config.callbacks.values():
        build("callbacks", entry)
    config.trainer.precision = choose_precision(config.trainer.precision, module, "cpu")
    trainer = build("trainer", config.trainer, logger=False, enable_checkpointing=False, default_root_dir=str(tmp_path))
    assert trainer.max_epochs == config.trainer.max_epochs


@pytest.mark.parametrize("group", ["prior_module", "data", "trainer", "logger"])
def test_every_option_of_a_group_composes_for_priors(group: str):
    for path in sorted((CONFIGS / group).glob("*.yaml")):
        assert compose("train_prior", f"{group}={path.stem}", "vae_ckpt_path=x")[group]


@pytest.mark.parametrize(
    "group",
    [
        "data",
        "vae_module",
        "vae_module/encoder",
        "vae_module/decoder",
        "vae_module/bottleneck",
        "vae_module/objective",
        "vae_module/objective/schedule",
        "vae_module/scheduler",
        "trainer",
        "logger",
        "callbacks",
    ],
)
def test_every_option_of_a_group_composes(group: str):
    for path in sorted((CONFIGS / group).glob("*.yaml")):
        assert OmegaConf.select(compose("train_vae", f"{group}={path.stem}"), group.replace("/", "."))


def test_published_widths_are_those_of_the_design():
    config = compose("train_vae", "experiment=mp_20/vae_dng", "output_dir=x").vae_module
    for part in (config.encoder, config.decoder):
        assert (part.d_model, part.nhead, part.num_layers) == (512, 8, 8)
    assert config.latent_dim == 8


def test_every_experiment_is_in_the_documentation():
    for experiment in EXPERIMENTS:
        page = "prior.md" if experiment in PRIOR_EXPERIMENTS else "training.md"
        assert f"| `{experiment}` |" in (ROOT / "docs" / page).read_text(encoding="utf-8"), experiment


def test_every_data_set_is_in_the_documentation():
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert all(f"`{path.stem}`" in text for path in (CONFIGS / "data").glob("*.yaml"))


# ---- command lines and signatures -----------------------------------------------------------------------------------


_NAMES = sorted({*COMMANDS, *(command.config for command in COMMANDS.values())}, key=len, reverse=True)
COMMAND = re.compile(rf"(?:src/|crystalvae )({'|'.join(_NAMES)})(?:\.py)?(?=\s|$)")


GROUPS = {"experiment", *(path.name for path in CONFIGS.rglob("*") if path.is_dir())}


def command_lines() -> Iterator[Any]:
    """Each combination of keys once; of groups, each choice."""
    seen = set()
    for page in [*PAGES, *ROOT.glob("README.md")]:
        blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            if (found := COMMAND.search(line)) and " -sc " not in line:  # completion takes no options
                rest = line[found.end() :].partition("#")[0].partition("--cfg")[0]
                words = re.findall(r"(?:'[^']*'|\S)+", rest)
                groups = {word for word in words if word.partition("=")[0] in GROUPS}
                kind = (found[1], frozenset(groups), frozenset(word.partition("=")[0] for word in words))
                if kind in seen:
                    continue
                seen.add(kind)
                yield pytest.param(
                    COMMANDS[found[1].replace("_", "-")].config, words, id=f"{page.stem}: {line.strip()}"[:90]
                )


@pytest.mark.parametrize(("name", "overrides"), list(command_lines()))
def test_documented_command_lines_name_options_that_exist(name: str, overrides: list[str]):
    compose(name, *(override.replace("'", "") for override in overrides if "…" not in override))


def signatures() -> Iterator[Any]:
    module = ""
    for line in (ROOT / "docs" / "api.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"## `([\w.]+)`", line):
            module = heading[1]
        elif entry := re.match(r"- `([\w.]+)\(([^)]*)\)`", line):
            yield pytest.param(module, entry[1], re.findall(r"\w+", entry[2]), id=f"{module}.{entry[1]}")


@pytest.mark.parametrize(("module", "name", "arguments"), list(signatures()))
def test_documented_signatures_are_those_of_the_code(module: str, name: str, arguments: list[str]):
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    parameters = list(inspect.signature(found).parameters)
    assert [parameter for parameter in parameters if parameter != "self"] == arguments


# ---- code ---------------------------------------------------------------------------------------------------


def test_the_research_snippet_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    tiny_module().save_checkpoint("path/to/checkpoint.ckpt")
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    snippet = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0]
    namespace: dict[str, Any] = {"batch": random_crystals()}
    exec(snippet, namespace)
    recon = namespace["batch_recon"]
    assert isinstance(recon, CrystalBatch)
    assert recon.frac_coords.requires_grad, "gradients flow through encode, decode and reconstruct"
    # What carries gradients is exported and measured all the same.
    assert [len(structure) for structure in recon.to_structure()] == recon.num_atoms.tolist()
    write_crystals(recon, "out", table=describe(recon), formats=["cif"])
    report = reconstruction_metrics(namespace["batch"], recon, runner=Runner(n_jobs=1, progress=False))
    assert report.crystals == len(recon)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec")
def test_bf16_mixed_trains_with_the_default_optimizer_and_clipping(tmp_path: Path):
    config = compose(
        "train_vae", "trainer.precision=bf16-mixed", "trainer.max_steps=2", f"output_dir={tmp_path}", *TINY
    )
    module = build("vae_module", config.vae_module)
    trainer = build("trainer", config.trainer, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    trainer.fit(module, CrystalLoader(random_crystals(), batch_size=2, shuffle=True))
    assert trainer.gradient_clip_val is not None
    assert any((old != new).any() for old, new in zip(before, module.parameters(), strict=True))


def test_the_tutorial_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "tutorial.md"
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "tutorial"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries say to a reader of a notebook is no error of ours
        for block in re.finditer(r"```python\n(.*?)```", text, flags=re.DOTALL):
            line = text.count("\n", 0, block.start(1))
            exec(compile("\n" * line + block[1], str(page), "exec"), namespace)
    assert len(list((tmp_path / "samples").glob("*.cif"))) == 3
    assert namespace["report"].length_mae < namespace["untrained"].length_mae
    assert all(math.isfinite(volume) for volume in namespace["facts"]["volume"])


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "tutorial"], ids=lambda page: page.name)
def test_python_in_the_pages_is_python(page: Path):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        compile(block, str(page), "exec")
        for module, names in re.findall(
            r"^from ((?:crystalvae|src)[\w.]*) import ([\w, ]+)$", block, flags=re.MULTILINE
        ):
            assert all(hasattr(importlib.import_module(module), name.strip()) for name in names.split(","))
