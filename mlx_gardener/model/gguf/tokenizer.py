"""A GGUF file's tokenizer as the `tokenizers` library has it: tokenizer.json, and tokenizer_config.json with the chat template.

In: a header. Two kinds are known: byte-level BPE (``gpt2``), whose merges are in the file and whose way to split text
before them (digits one by one or in threes, line ends alone or not) is what ``tokenizer.ggml.pre`` names; and SentencePiece
BPE (``llama``), whose merges follow from the scores. Splits that are not known are refused by name: a wrong one gives
other tokens for every number. Sources: llama.cpp's src/llama-vocab.cpp; the tokenizer.json of the models themselves.
Cost: a second for 150,000 tokens; four for the 262,000 of Gemma, whose merges are made.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mlx_gardener.model.gguf.reader import Gguf
from mlx_gardener.model.gguf.settings import NotReadableError
from mlx_gardener.model.tokens import is_marker

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_SPACE = "▁"
#: Numbers of ``tokenizer.ggml.token_type``.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
#: Longer ones are taken for tokens that nothing is merged into; real ones have up to about 130 letters.
_LONGEST_MERGED = 512
_PADDING = re.compile(r"\[PAD\d+\]")
_FIM_KEYS = ("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep", "prefix", "suffix", "middle")

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _WORDS + r"\p{N}{1,3}" + _REST
_QWEN2 = _WORDS + r"\p{N}" + _REST
_SEED = _WORDS + r"\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|"
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = _CASED % ("", "") + r"\p{N}" + _CASED_REST
_GPT4O = _CASED % (("(?i:'s|'t|'re|'ve|'m|'ll|'d)?",) * 2) + r"\p{N}{1,3}" + _CASED_REST
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")
#: Ways to split: expressions, one after the other; None for GPT-2's own, ``digits`` for that after single digits.
_SPLITS: dict[str, tuple[str, ...] | None] = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe"), (_LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), (_QWEN2,)),
    **dict.fromkeys(("starcoder", "refact", "smollm", "codeshell", "mellum2"), ("digits",)),
    **dict.fromkeys(("gpt-2", "mellum", "trillion"), None),
    **dict.fromkeys(("gpt-4o", "llama4"), (_GPT4O,)),
    "tekken": (_TEKKEN,),
    "seed-coder": (_SEED,),
    "deepseek-coder": _DEEPSEEK_CODER,
}
#: Whose whole words are looked up before anything is merged; all of these open a text with a token.
_WHOLE_WORDS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"})
#: Whose texts are brought into Unicode's form NFC first.
_NFC = frozenset({"qwen2", "deepseek-r1-qwen", "megrez"})


def check_tokenizer(gguf: Gguf) -> None:
    """Refuse what `read_tokenizer` would not understand, without reading it.

    Raises:
        NotReadableError: the kind of tokenizer, or its way to split text, is not known here; names it.
    """
    kind, split = gguf.metadata.get("tokenizer.ggml.model"), gguf.metadata.get("tokenizer.ggml.pre")
    if kind not in ("gpt2", "llama"):
        raise NotReadableError(f"its tokenizer is of the kind {kind!r} (only gpt2 and llama are read here)")
    if kind == "gpt2" and split is None:
        raise NotReadableError(
            "it does not say how its tokenizer splits text (files of before May 2024 do not)"
        )
    if kind == "gpt2" and split not in _SPLITS:
        raise NotReadableError(f"its tokenizer splits text as {split!r}, which is not known here")


def read_tokenizer(gguf: Gguf, rows: int) -> tuple[Tokenizer, dict[str, Any], dict[str, int]]:
    """The tokenizer, what tokenizer_config.json says, and ids for config.json.

    Args:
        rows: of the model's table of tokens.

    Raises:
        NotReadableError: as `check_tokenizer`; or there are no tokens or merges, some twice, or more than rows.
    """
    check_tokenizer(gguf)
    tokens, kinds = _tokens(gguf, rows)
    is_bytes = gguf.metadata["tokenizer.ggml.model"] == "gpt2"
    try:
        tokenizer = _byte_level(gguf, tokens, kinds) if is_bytes else _sentencepiece(gguf, tokens, kinds)
        tokenizer.add_tokens(list(_added(gguf, tokens, kinds)))
    except BaseException as error:  # tokenizers raises bare Exceptions, and panics, which are not even that
        is_damage = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if isinstance(error, NotReadableError) or not is_damage:
            raise
        raise NotReadableError(f"its tokenizer is damaged: {error}") from error
    ids = {name: _id(gguf, f"{key}_token_id", tokens) for name, key in
           (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))}  # fmt: skip
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {f"{name}_token": tokens[found] for name, found in ids.items() if found is not None}
    opens = not is_bytes or gguf.metadata.get("tokenizer.ggml.pre") in _WHOLE_WORDS
    settings["add_bos_token"] = bool(gguf.metadata.get("tokenizer.ggml.add_bos_token", opens))
    context = gguf.get("context_length")
    if isinstance(context, int):
        settings["model_max_length"] = context
    template = gguf.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        settings["chat_template"] = template
    known = {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")}
    return tokenizer, settings, {name: found for name, found in known.items() if found is not None}


def _tokens(gguf: Gguf, rows: int) -> tuple[list[str], list[int]]:
    """All tokens and their types."""
    found = gguf.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(found, list) or not found:
        raise NotReadableError("it has no list of tokens")
    if len(found) > rows:
        raise NotReadableError(f"it has {len(found):,} tokens, and a table of {rows:,}")
    tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(found)]
    if len(set(tokens)) != len(tokens):
        raise NotReadableError("it has a token twice")
    kinds = gguf.metadata.get("tokenizer.ggml.token_type")
    if kinds is None:
        return tokens, [1] * len(tokens)
    if not hasattr(kinds, "tolist") or len(kinds) < len(tokens):
        raise NotReadableError("it has fewer types of tokens than tokens")
    return tokens, [int(kind) for kind in kinds.tolist()[: len(tokens)]]


def _id(gguf: Gguf, key: str, tokens: list[str]) -> int | None:
    """The id of a special token; None where it is not named, or out of the vocabulary, which llama.cpp passes over too."""
    found = gguf.metadata.get(f"tokenizer.ggml.{key}")
    return found if isinstance(found, int) and 0 <= found < len(tokens) else None


def _vocabulary(tokens: list[str], kinds: list[int]) -> dict[str, int]:
    """Ids by token, without what only fills the table up."""
    return {
        token: number
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != _UNUSED or not _PADDING.fullmatch(token)
    }


def _added(gguf: Gguf, tokens: list[str], kinds: list[int]) -> list[AddedToken]:
    """Tokens that are found whole in a text: control tokens, markers whatever the file calls them, and users' own."""
    from tokenizers import AddedToken

    marked = {_id(gguf, f"{key}_token_id", tokens) for key in _FIM_KEYS}
    found = []
    for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        special = kind in (_CONTROL, _UNKNOWN) or number in marked or (kind != _UNUSED and is_marker(token))
        if special or (kind == _USER_DEFINED and token.strip(" ")):
            found.append(AddedToken(token, special=special, normalized=False))
    return found


def _byte_level(gguf: Gguf, tokens: list[str], kinds: list[int]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges = gguf.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise NotReadableError("it has no merges")
    pairs = [(merge[: merge.find(" ", 1)], merge[merge.find(" ", 1) + 1 :]) for merge in merges]
    name = gguf.metadata["tokenizer.ggml.pre"]
    vocabulary = _vocabulary(tokens, kinds)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=name in _WHOLE_WORDS))
    split = _SPLITS[name]
    own = split is None or split == ("digits",)
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own)]
    if split == ("digits",):
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    elif split is not None:
        steps[:0] = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in split]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    if name in _NFC:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(gguf: Gguf, tokens: list[str], kinds: list[int]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    is_gemma = gguf.architecture.startswith("gemma")
    if is_gemma:  # whose runs of spaces are written as spaces; its scores are not the order of its merges
        tokens = [_SPACE * len(token) if not token.strip(" ") else token for token in tokens]
    scores = gguf.metadata.get("tokenizer.ggml.scores")
    if scores is None or not hasattr(scores, "tolist") or len(scores) < len(tokens):
        raise NotReadableError("it has fewer scores than tokens")
    ranks = list(range(0, -len(tokens), -1)) if is_gemma else scores.tolist()
    vocabulary = _vocabulary(tokens, kinds)
    unknown = _id(gguf, "unknown_token_id", tokens)
    unknown = next((number for number, kind in enumerate(kinds) if kind == _UNKNOWN), unknown)
    prefix = bool(gguf.metadata.get("tokenizer.ggml.add_space_prefix", True))
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(vocabulary, kinds, ranks),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def _merges(vocabulary: dict[str, int], kinds: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to put a token together out of two others, the token of the highest score first, as SentencePiece merges."""
    found = []
    for token, number in vocabulary.items():
        if (
            not 2 <= len(token) <= _LONGEST_MERGED
            or kinds[number] in (_CONTROL, _UNKNOWN)
            or kinds[number] > _UNUSED
        ):
            continue
        for at in range(1, len(token)):
            left, right = vocabulary.get(token[:at]), vocabulary.get(token[at:])
            if left is not None and right is not None:
                found.append((-scores[number], number, left, right, at, token))
    found.sort()
    return [(token[:at], token[at:]) for *_, at, token in found]
