"""Work in a model's latent space: `python src/latent.py operation=…`, or `crystalvae-latent …` from any folder."""

if not __package__:
    import _script_path  # noqa: F401

from src.commands.cli import run_command
from src.commands.latent import latent


def main() -> None:
    """Compose the config from the command line, do the operation, and say where the results are."""
    run_command("latent", latent)


if __name__ == "__main__":
    main()
