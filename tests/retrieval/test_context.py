"""What stands in front of a prompt: what fits, in the model's own form, within its budget, and nothing that is shown already."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlx_gardener.evaluate.complete import PREFIX_TOKENS, build_prompt
from mlx_gardener.model import CodeTokenizer, load_tokenizer
from mlx_gardener.retrieval import Retriever, code_in_front, index_of_chunks, with_context
from mlx_gardener.retrieval.context import OTHER_CODE_TOKENS
from mlx_gardener.retrieval.index import file_part, merged
from tests.support.indexes import CHUNKS

BEFORE = "table = TideTable()\nassert table.height_at("


@pytest.fixture
def tokenizer(tiny_tokenizer_dir: Path) -> CodeTokenizer:
    return load_tokenizer(tiny_tokenizer_dir)


def retriever(tokenizer: CodeTokenizer, limit: int = 400, name: str = "") -> Retriever:
    return Retriever(index_of_chunks(CHUNKS, name=name), tokenizer, limit_tokens=limit)


def test_the_chunk_that_fits_stands_nearest_and_in_the_models_form(tokenizer: CodeTokenizer) -> None:
    ids = retriever(tokenizer).context("tests/test_boat.py", BEFORE)
    assert ids[0] == tokenizer.file_id and len(ids) <= 400
    last = tokenizer.decode(ids).rsplit("<|file_sep|>", 1)[1]
    assert last.startswith("src/tides.py\nclass TideTable")
    assert retriever(tokenizer).context("a.py", "zzz qqq") == []


def test_a_repository_is_named_in_front_as_in_its_rows(tokenizer: CodeTokenizer) -> None:
    found = retriever(tokenizer, name="harbor").find("tests/test_boat.py", BEFORE)
    text = tokenizer.decode(list(found.ids))
    assert text.startswith("<|repo_name|>harbor\n<|file_sep|>") and text.count("<|repo_name|>") == 1
    assert (
        found.pieces[0].path == "src/tides.py"
        and found.tokens == len(found.ids) - len(tokenizer.encode("harbor\n")) - 1
    )


def test_a_context_keeps_to_its_limit_and_shows_no_chunk_of_the_file_itself(tokenizer: CodeTokenizer) -> None:
    for name in ("", "harbor"):
        ids = retriever(tokenizer, 40, name).context("x.py", "TideTable height_at send_mail parse_arguments")
        assert 0 < len(ids) <= 40
    own = retriever(tokenizer).context("src/tides.py", "TideTable height")
    assert "class TideTable" not in tokenizer.decode(own)


def test_of_a_chunk_that_is_cut_the_lines_that_are_shown_are_told(tokenizer: CodeTokenizer) -> None:
    text = "".join(f"height_{number} = TideTable({number})\n" for number in range(60))
    index = merged(None, [file_part("src/long.py", [text.encode()], [(10, 69)])], name="")
    for limit in range(40, 60):
        context = Retriever(index, tokenizer, limit_tokens=limit, signatures=0).find("", BEFORE)
        (piece,) = context.pieces
        shown = tokenizer.decode(list(context.ids)).rstrip().split("\n")
        assert (piece.start_line, piece.end_line) == (10, 8 + len(shown)), (piece, shown)
    whole = Retriever(index, tokenizer, limit_tokens=4000, signatures=0).find("", BEFORE).pieces[0]
    assert (whole.start_line, whole.end_line) == (10, 69)


def test_what_the_open_file_or_the_client_shows_is_not_shown_again(tokenizer: CodeTokenizer) -> None:
    """Also where the open file's path is not told, or its text has changed a little since."""
    tides, edited = CHUNKS[1][1], CHUNKS[1][1].replace("hour)", "minute)")
    found = retriever(tokenizer)

    def paths(before: str, after: str, sent: str = "") -> list[str]:
        own = build_prompt(tokenizer, before, after, "")
        _, context = code_in_front(found, "", before, after, own=own, sent=tokenizer.encode(sent))
        return [piece.path for piece in context.pieces]

    assert "src/tides.py" in paths(BEFORE, "")
    for around in ((f"\n{edited}{BEFORE}", ""), (BEFORE, f"\n{edited}"), (BEFORE, "", f"\n{tides}")):
        assert "src/tides.py" not in paths(*around), around


def test_a_copy_far_away_in_the_open_file_is_found_as_the_prompt_does_not_show_it(
    tokenizer: CodeTokenizer,
) -> None:
    tides, far = CHUNKS[1][1], "".join(f"depth_{number} = {number}\n" for number in range(PREFIX_TOKENS))
    assert len(far) < 2**14
    for before, after in ((f"{tides}\n{far}{BEFORE}", "\n"), (BEFORE, f"\n{far}{tides}")):
        own = build_prompt(tokenizer, before, after, "a.py")
        assert "class TideTable" not in tokenizer.decode(own)
        _, context = code_in_front(retriever(tokenizer), "a.py", before, after, own=own)
        assert "src/tides.py" in [piece.path for piece in context.pieces]


def test_a_text_that_stands_in_two_files_is_shown_once(tokenizer: CodeTokenizer) -> None:
    twice = [*CHUNKS, ("src/copy.py", CHUNKS[1][1])]
    found = Retriever(index_of_chunks(twice), tokenizer, limit_tokens=400).find("", BEFORE)
    assert [piece.path for piece in found.pieces].count("src/copy.py") == 1
    assert "src/tides.py" not in [piece.path for piece in found.pieces]


def test_the_clients_pieces_have_the_room_first_and_stand_nearer(tokenizer: CodeTokenizer) -> None:
    sent = tokenizer.encode("sent = True\n" * 300)
    found = retriever(tokenizer)
    ids, context = code_in_front(found, "a.py", BEFORE, own=[], sent=sent[:100])
    assert ids[-100:] == sent[:100] and ids[:-100] == list(context.ids) != []
    ids, context = code_in_front(found, "a.py", BEFORE, own=[], sent=sent[: OTHER_CODE_TOKENS - 40])
    assert len(ids) <= OTHER_CODE_TOKENS and context.pieces
    ids, context = code_in_front(found, "a.py", BEFORE, own=[], sent=sent[:OTHER_CODE_TOKENS])
    assert ids == sent[:OTHER_CODE_TOKENS] and not context.pieces
    assert code_in_front(None, "a.py", BEFORE, own=[], sent=sent[:5]) == (sent[:5], type(context)())
    assert code_in_front(found, "a.py", BEFORE, own=[], most_tokens=10)[0] == []


def test_without_a_path_or_what_follows_nothing_would_tell_where_retrieved_code_ends(
    tokenizer: CodeTokenizer,
) -> None:
    assert code_in_front(retriever(tokenizer), "", BEFORE, own=[])[0] == []
    assert code_in_front(retriever(tokenizer), "", BEFORE, "", own=[])[0]
    assert code_in_front(retriever(tokenizer), "a.py", BEFORE, own=[])[0]


def test_other_code_stands_behind_what_opens_a_document(tokenizer: CodeTokenizer) -> None:
    from dataclasses import replace

    assert with_context([1, 2], [8, 9], tokenizer) == [8, 9, 1, 2]
    opened = replace(tokenizer, bos_id=7)
    assert with_context([7, 1, 2], [8, 9], opened) == [7, 8, 9, 1, 2]
    assert with_context([7, 1, 2], [], opened) == [7, 1, 2]


def test_a_search_writes_no_lines_of_its_own_into_a_runs_log(
    tokenizer: CodeTokenizer, capfd: pytest.CaptureFixture[str]
) -> None:
    retriever(tokenizer).context("x.py", "TideTable")
    said = capfd.readouterr()
    assert not said.out and not said.err
