"""Train a VAE: `python src/train_vae.py …`, or `crystalvae-train …` from any folder."""

if not __package__:
    import _script_path  # noqa: F401

from src.commands.cli import run_command
from src.commands.train import train


def main() -> None:
    """Compose the config from the command line, train, and say where the results are."""
    run_command("train_vae", train)


if __name__ == "__main__":
    main()
