"""``python -m mlx_gardener``: the same as the ``mlx-gardener`` command."""

from mlx_gardener.cli import main

main()
