"""What the entry points share: Hydra, logging, and errors as one paragraph with exit status 1."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.logging import RichHandler

from crystalvae.build import to_plain
from crystalvae.checkpoints.trusted import trusting
from crystalvae.errors import ConfigError, CrystalVAEError

log = logging.getLogger(__name__)


def config_dir() -> Path:
    """Return the folder of the configs: inside the installed package, or beside `src` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parents[1] / "configs"):
        if (folder / "train_vae.yaml").is_file():
            return folder
    raise ConfigError(f"no configs found in {package} or beside it: the installation is incomplete, install again")


def run_command(config_name: str, command: Callable[[DictConfig], str]) -> None:
    """Compose `config_name` with the command line's overrides, run, and print what the command returns.

    Our own errors end the process with status 1 and their one paragraph on stderr, without a traceback.
    """
    errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def task(config: DictConfig) -> None:
        set_up_logging()
        try:
            _check_known(config, config_name)
            _check_required(config)
            with trusting(to_plain(config.trusted_targets)):
                message = command(config)
        except CrystalVAEError as error:
            errors.print(f"[bold red]error:[/] {_escape(str(error))}")
            sys.exit(1)
        except KeyboardInterrupt:
            errors.print("stopped")
            sys.exit(130)
        except OmegaConfBaseException as error:
            errors.print(f"[bold red]error:[/] config: {_escape(' '.join(str(error).split()))}")
            sys.exit(1)
        if is_main_process():
            Console(highlight=False, soft_wrap=True).print(_escape(message))

    try:
        entry = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(task)
    except CrystalVAEError as error:
        errors.print(f"[bold red]error:[/] {_escape(str(error))}")
        sys.exit(1)
    entry()


def set_up_logging() -> None:
    """Send the library's log lines to stderr, once, and quieten what only concerns developers of the libraries."""
    handler = RichHandler(
        console=Console(stderr=True, soft_wrap=True), show_time=False, show_path=False, rich_tracebacks=False
    )
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Our batches are gathered on the device: there are no worker processes to ask for.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message=".*Trying to infer the `batch_size`.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # a prior's frozen VAE


def _check_known(config: DictConfig, config_name: str) -> None:
    """Refuse keys that no command reads: Hydra itself proposes to add a mistyped key with a plus."""
    own: Any = OmegaConf.to_container(OmegaConf.load(config_dir() / f"{config_name}.yaml"))
    groups = [name.split()[-1] for entry in own.pop("defaults", []) if isinstance(entry, dict) for name in entry]
    _refuse_others(config, {**own, **dict.fromkeys(groups)})


def _refuse_others(config: DictConfig, known: dict[str, Any], within: str = "") -> None:
    for key in map(str, config):
        if key not in known:
            close = get_close_matches(key, known, n=1)
            meant = f"did you mean {within}{close[0]}?" if close else f"expected one of {', '.join(sorted(known))}"
            raise ConfigError(f"{within}{key}: the command has no such key; {meant}")
        part = None if OmegaConf.is_missing(config, key) else config[key]
        # What a group holds is for the part that it describes to judge, and conditions have names of the data's.
        if isinstance(known[key], dict) and isinstance(part, DictConfig) and key != "conditions":
            _refuse_others(part, known[key], f"{within}{key}.")


def _check_required(config: DictConfig) -> None:
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"missing on the command line: {', '.join(f'{key}=…' for key in missing)}")


def is_main_process() -> bool:
    """Say whether this is the process of rank 0, as Lightning, torchrun and Slurm tell their processes at the start."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
