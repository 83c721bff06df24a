"""Measure a checkpoint's reconstruction: `python src/evaluate.py …`, or `crystalvae-evaluate …` from any folder."""

if not __package__:
    import _script_path  # noqa: F401

from src.commands.cli import run_command
from src.commands.evaluate import evaluate


def main() -> None:
    """Compose the config from the command line, evaluate, and say where the results are."""
    run_command("evaluate", evaluate)


if __name__ == "__main__":
    main()
