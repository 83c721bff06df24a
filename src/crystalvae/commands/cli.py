"""What all commands share: Hydra, a checked config, logging, and errors as one paragraph.

Exit statuses: 0 done; 1 an error; 2 no such command or flag; 130 stopped by Ctrl-C; 143 training stopped by SIGTERM.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import hydra
from hydra.errors import MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape

from crystalvae.build import to_plain
from crystalvae.commands.checked_config import checked, meant, unknown_key
from crystalvae.commands.config_files import config_dir, group_options
from crystalvae.commands.trace_file import FULL_ERROR, our_mistake
from crystalvae.errors import ConfigError, CrystalVAEError, printable

log = logging.getLogger(__name__)


def run_command(config_name: str, load: Callable[[], Callable[[DictConfig], str]]) -> None:
    """Compose `config_name` with the command line's overrides, run what `load` gives, and print what that returns.

    `load` is called when the config is found to be right: what it imports takes seconds. Errors end the process with
    status 1 and one paragraph on stderr, without a traceback but for those that are a mistake of this package.
    """
    asked = os.environ.get(FULL_ERROR)

    def task(config: DictConfig) -> None:
        _set(FULL_ERROR, asked)
        with _reported():
            config = checked(config_name, config)
            command = load()
            set_up_logging()  # after Lightning, which sets up its own when it is imported
            from crystalvae.checkpoints.trusted import trusting

            with trusting(to_plain(config.trusted_targets)):
                message = command(config)
        if is_main_process():
            Console(highlight=False, soft_wrap=True).print(escape(printable(message)))

    with _reported():
        entry = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(task)
        os.environ[FULL_ERROR] = "1"  # or else Hydra prints its errors itself, and proposes to add a mistyped key
        try:
            entry()
        except (CrystalVAEError, OmegaConfBaseException):
            raise
        except Exception as error:
            raise ConfigError(_hydras_reason(error)) from error
        finally:
            _set(FULL_ERROR, asked)


def set_up_logging() -> None:
    """Send the library's log lines to stderr, once, and quieten what only concerns developers of the libraries."""
    logging.basicConfig(level=logging.INFO, handlers=[_Lines()], force=True)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Our batches are gathered on the device: there are no worker processes to ask for.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message=".*Trying to infer the `batch_size`.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # a prior's frozen VAE


def is_main_process() -> bool:
    """Say whether this is the process of rank 0, as Lightning, torchrun and Slurm tell their processes at the start."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


class _Lines(logging.Handler):
    """Writes records to stderr with their level in colour, and never breaks a line, which may be a command to copy."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)

    def emit(self, record: logging.LogRecord) -> None:
        style = {"WARNING": "yellow", "ERROR": "bold red", "CRITICAL": "bold red"}.get(record.levelname, "blue")
        self._console.print(f"[{style}]{record.levelname:<8}[/] {escape(printable(self.format(record)))}")


@contextmanager
def _reported() -> Iterator[None]:
    """Turn errors into one paragraph on stderr and an exit status."""
    try:
        yield
    except CrystalVAEError as error:
        _end(str(error), error)
    except OmegaConfBaseException as error:
        _end(f"config: {' '.join(str(error).split())}", error)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped")
        sys.exit(130)
    except BrokenPipeError:  # … | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # noqa: BLE001  the outermost net: a mistake of ours is told as one, too
        _end(our_mistake(error), error)


def _end(message: str, error: Exception) -> NoReturn:
    if os.environ.get(FULL_ERROR) == "1":
        traceback.print_exception(error)
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/] {escape(printable(message))}")
    sys.exit(1)


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _hydras_reason(error: Exception) -> str:
    """Return in one paragraph why Hydra cannot compose a config."""
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group.startswith("experiment"):
            group, option = "experiment", error.missing_cfg_file.removeprefix("experiment/")
        return f"{group or '--config-name'}={option}: there is no such option; {meant(option, group_options(group))}"
    if isinstance(cause, OmegaConfBaseException):
        if cause.full_key and isinstance(cause.parent_node, DictConfig) and "is not in struct" in str(cause.msg):
            return str(unknown_key(str(cause.full_key), [str(key) for key in cause.parent_node]))
        return f"{cause.full_key or 'config'}: {' '.join(str(cause.msg).split())}"
    text = re.sub(r"\n\s*See https://hydra\S+.*", "", str(error))
    return f"on the command line: {' '.join(text.split())}; expected KEY=VALUE, GROUP=OPTION, or ~GROUP for none of it"
