"""Which parts a config inside a checkpoint may name: those of this package, and what the user says to trust."""

from __future__ import annotations

from typing import Any

from crystalvae.build import entries, is_allowed, is_foreign, trusting
from crystalvae.errors import CheckpointError, ConfigError

__all__ = ["check_targets", "names_foreign_parts", "trusting"]


def check_targets(config: Any) -> None:
    """Raise `CheckpointError` where a config names a `_target_` outside `MODEL_PARTS` and what is `trusting` now.

    Loading a checkpoint builds what its config names, so a hostile one could otherwise name any callable: also one that
    a trusted module merely imports (`….checkpoint.os.system`), or one that an interpolation makes up.
    """
    try:
        for key, value in entries(config):
            if isinstance(value, str) and ("${" in value or value == "???"):
                raise CheckpointError(
                    f"the checkpoint's config holds an interpolation, {key}: {value!r}; expected plain data"
                )
            if key == "_target_" and not is_allowed(value, of_runs=False):
                raise CheckpointError(
                    f"the checkpoint's config asks for {value!r}, which is not one of this package's parts. If you "
                    f"trust where it comes from, pass trusted_targets=[{str(value).rpartition('.')[0] + '.'!r}] when "
                    "loading, also on a command line"
                )
    except ConfigError as error:
        raise CheckpointError(f"damaged checkpoint: {error}") from error


def names_foreign_parts(config: Any) -> bool:
    """Say whether a config names a `_target_` outside `MODEL_PARTS`."""
    return any(key == "_target_" and is_foreign(value) for key, value in entries(config))
