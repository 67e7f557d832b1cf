"""What a training would read, said before it begins, and what it then reads."""

from __future__ import annotations

from pathlib import Path

from mlx_gardener import scan
from mlx_gardener.config import load_config
from mlx_gardener.dataset import TrainingDataPreparator
from mlx_gardener.model import load_tokenizer
from tests.support.repositories import write_repository


def test_an_epoch_is_foretold_with_what_is_added_to_it(
    tmp_path: Path, tiny_model_dir: Path, tiny_tokenizer_dir: Path
) -> None:
    root = write_repository(tmp_path / "large", modules=40, functions=8)
    tokenizer = load_tokenizer(tiny_tokenizer_dir)

    def tokens(**shares: float) -> tuple[int, int]:
        """(foretold, in the rows)."""
        chosen = {
            "model": str(tiny_model_dir),
            "min_training_chunks": 5,
            "training_data_quality_threshold": 0.1,
            "data.sequence_lengths": [128, 256],
            **shares,
        }
        config = load_config(environment={}, overrides=chosen)
        preparator = TrainingDataPreparator(config, tokenizer=tokenizer, cache_dir=tmp_path / "cache")
        foretold = scan(root, config=config).estimate["pass_tokens"]
        return foretold, preparator.prepare(root).train.total_tokens

    plain = tokens()
    for shares in ({"data.retrieval_share": 0.3}, {"data.retrieval_share": 0.3, "data.general_share": 0.1}):
        foretold, seen = tokens(**shares)
        assert seen > 1.15 * plain[1]
        assert 0.85 < (foretold / plain[0]) / (seen / plain[1]) < 1.2, shares
