"""Sample crystals from a checkpoint: `python src/sample.py …`, or `crystalvae-sample …` from any folder."""

if not __package__:
    import _script_path  # noqa: F401

from src.commands.cli import run_command
from src.commands.sample import sample


def main() -> None:
    """Compose the config from the command line, sample, and say where the results are."""
    run_command("sample", sample)


if __name__ == "__main__":
    main()
