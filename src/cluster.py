"""Cluster crystals in a latent space: `python src/cluster.py k=8`, or `crystalvae-cluster k=8` from any folder."""

if not __package__:
    import _script_path  # noqa: F401

from src.commands.cli import run_command
from src.commands.cluster import cluster


def main() -> None:
    """Compose the config from the command line, cluster, and say what is in the clusters."""
    run_command("cluster", cluster)


if __name__ == "__main__":
    main()
