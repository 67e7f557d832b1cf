"""General code that is learned against forgetting, apart from the code that forgetting is measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_gardener.dataset import PreparedData, TrainingDataPreparator
from mlx_gardener.dataset.general import general_code, general_examples
from mlx_gardener.errors import ConfigError
from mlx_gardener.evaluate.guards import other_code
from mlx_gardener.model import load_tokenizer
from mlx_gardener.source.languages import parse
from tests.support.datasets import settings

IMPORTS = ("import ", "use ", "from ", "#include")


@pytest.fixture
def prepare(tiny_tokenizer_dir: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    def go(root: Path, **more: object) -> PreparedData:
        tokenizer = load_tokenizer(tiny_tokenizer_dir)
        return TrainingDataPreparator(
            settings(**more), tokenizer=tokenizer, cache_dir=tmp_path / "cache"
        ).prepare(root)

    return go


def telling_lines(text: str) -> set[str]:
    lines = (line.strip() for line in text.splitlines())
    return {line for line in lines if len(line) >= 12 and not line.startswith(IMPORTS)}


def test_nothing_of_what_is_learned_is_what_forgetting_is_measured_on() -> None:
    learned, measured = general_code(), other_code()
    assert not {item.path for item in learned} & {item.path for item in measured}
    for excerpt in measured:
        own = telling_lines(excerpt.text)
        assert len(own) > 15
        for other in learned:
            shared = own & telling_lines(other.text)
            assert len(shared) <= 0.1 * len(own), (excerpt.path, other.path, shared)


def test_the_sample_is_small_and_of_many_languages_that_parse() -> None:
    sample = general_code()
    assert len({item.language for item in sample}) == len(sample) == 10
    assert sum(len(item.text) for item in sample) < 40_000
    for item in sample:
        tree = parse(item.text.encode(), item.language)
        assert tree is not None and not tree.root_node.has_error, item.path


def test_the_examples_hold_all_of_it_and_their_order_is_the_seeds() -> None:
    config = settings().data
    made = general_examples(config, can_fill=True, seed=0)
    assert (
        made
        == general_examples(config, can_fill=True, seed=0)
        != general_examples(config, can_fill=True, seed=1)
    )
    whole = sum(len(item.text) for item in general_code())
    assert sum(len(item.prefix + (item.middle or "") + item.suffix) for item in made) == whole
    assert [item.path for item in made[:8]] != sorted(item.path for item in made[:8]), (
        "not one language after another"
    )


def test_it_takes_its_share_of_what_is_learned(prepare, repository: Path) -> None:  # type: ignore[no-untyped-def]
    none = prepare(repository)
    assert none.summary.general_loss_tokens is None
    for share in (0.1, 0.3):
        data = prepare(repository, **{"data.general_share": share})
        assert data.summary.general_loss_tokens is not None
        seen = data.summary.general_loss_tokens / data.summary.train_loss_tokens
        assert share - 0.02 <= seen <= share + 0.06, "to a whole example"
        assert (
            data.test.sha256() == none.test.sha256() and data.validation.sha256() == none.validation.sha256()
        )


def test_a_repository_that_holds_the_sample_is_not_taught_its_own_test_files(
    prepare, repository: Path
) -> None:  # type: ignore[no-untyped-def]
    """This package's own repository does."""
    for item in general_code():
        (repository / item.path).write_text(item.text)
    data = prepare(repository, **{"data.general_share": 0.3})
    assert data.summary.general_loss_tokens == 0


@pytest.mark.parametrize("share", [-0.1, 0.6])
def test_a_share_that_leaves_little_of_the_repository_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="general_share"):
        settings(**{"data.general_share": share})
