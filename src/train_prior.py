"""Train a prior over a VAE's latents: `python src/train_prior.py …`, or `crystalvae-train-prior …` from any folder."""

if not __package__:
    import _script_path  # noqa: F401

from src.commands.cli import run_command
from src.commands.train_prior import train_prior


def main() -> None:
    """Compose the config from the command line, train, and say where the results are."""
    run_command("train_prior", train_prior)


if __name__ == "__main__":
    main()
