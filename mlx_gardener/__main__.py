"""``python -m mlx_gardener``, the same as the ``mlx-gardener`` command, which begins here: Ctrl-C while modules are imported is
no error to show."""

import sys


def main() -> None:
    """Entry point of the ``mlx-gardener`` script."""
    try:
        from mlx_gardener.cli import main as run

        run()
    except KeyboardInterrupt:  # nothing was begun: commands tell of theirs
        sys.exit(130)


if __name__ == "__main__":
    main()
