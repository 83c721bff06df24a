"""Make a bundled model of a checkpoint: `python src/publish.py ckpt_path=runs/…/best.ckpt name=mp20-small`."""

if not __package__:
    import _script_path  # noqa: F401

from src.commands.cli import run_command
from src.commands.publish import publish


def main() -> None:
    """Compose the config from the command line, convert, and say where the model is."""
    run_command("publish", publish)


if __name__ == "__main__":
    main()
