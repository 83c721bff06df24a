"""Train a property head on a VAE's latents: `python src/train_predictor.py …`, or `crystalvae-train-predictor …`."""

if not __package__:
    import _script_path  # noqa: F401

from src.commands.cli import run_command
from src.commands.train_predictor import train_predictor


def main() -> None:
    """Compose the config from the command line, train, and say where the results are."""
    run_command("train_predictor", train_predictor)


if __name__ == "__main__":
    main()
