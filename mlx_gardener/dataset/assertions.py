"""Assertions in held-out tests: the value that a call, an operator or a macro compares with is to be written.

In: excerpts of held-out files, of which only tests are looked at. Out: `AssertionTask`s, as RepoPeftBench has them (Code2LoRA,
arXiv:2606.06492), for Python, JavaScript, TypeScript, Go and Rust. What something is looked for in (`in`, `assertIn`) is no value, and
one that an earlier assertion of the file has is not asked for again: else one name could be most of the answers. Cost: a syntax tree
a file, for about a megabyte of them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from mlx_gardener.dataset.examples import Excerpt
from mlx_gardener.dataset.turns import in_turn
from mlx_gardener.source.languages import parse

if TYPE_CHECKING:
    from tree_sitter import Node

#: Source of held-out files that places are looked for in: enough for thousands of them.
LOOKED_AT_BYTES = 2**20
#: Shortest and longest value, characters, and values that anybody would guess.
_VALUE_CHARACTERS = (2, 96)
_TRIVIAL = {"None", "True", "False", "nil", "null", "true", "false", "undefined"}
_SCRIPTS = ("javascript", "typescript", "tsx")
_TEST_PART = re.compile(r"(^|[._-])(tests?|specs?)([._-]|$)|^__tests__$", re.I)
_PYTHON_CALL = re.compile(
    r"^assert(Not|Count|List|Dict|Set|Tuple|Sequence|MultiLine|Almost)*(Equals?|Almost|Is|IsInstance|Greater|Less|GreaterEqual|LessEqual|Regex)$"
)
_SCRIPT_MATCHER = re.compile(r"^(to(?!BeOneOf)[A-Z]\w*|equals?|eql|eq|include|contain|match)$")
_SCRIPT_CALL = re.compile(r"^(assert\w*|t|test|should)$")
_SCRIPT_EQUAL = re.compile(
    r"^(\w*[eE]quals?|is|isNot|same|deepStrictEqual|instanceOf|include|match|assert\w*Equals?)$"
)
_GO_CALL = re.compile(
    r"^(Not)?(Equal\w*|Exactly|Contains|Len|ElementsMatch|Same|Greater\w*|Less\w*|JSONEq|ErrorIs|IsType)$"
)
_GO_FAILURE = re.compile(rb"\b[tb]\.(Error|Fatal|Fail)")
_RUST_PAIR = re.compile(r"^(debug_)?assert_(eq|ne)$")
_RUST_TRUTH = re.compile(r"^(debug_)?assert$")
_COMPARING = ("==", "!=", "===", "!==", "<", ">", "<=", ">=")
_OPENING, _CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class AssertionTask:
    """A value in an assertion of a held-out test: ``prefix`` ends right before it and the blanks in front of it.

    ``in_condition``: it ends a condition and not an argument, so that a block follows it.
    """

    path: str
    language: str
    line: int
    prefix: str
    target: str
    in_condition: bool = False


def is_test(path: str, language: str) -> bool:
    """Whether a file holds tests by its path; Rust keeps them beside the code."""
    return language == "rust" or any(_TEST_PART.search(part) for part in PurePosixPath(path).parts)


def assertion_tasks(excerpts: Sequence[Excerpt], count: int, *, seed: int) -> list[AssertionTask]:
    """``count`` tasks drawn without repeats, from files in turn; fewer when there are not as many.

    Those of a smaller ``count`` come first.
    """
    by_file: dict[str, list[Excerpt]] = {}
    for excerpt in excerpts:
        if is_test(excerpt.path, excerpt.language):
            by_file.setdefault(excerpt.path, []).append(excerpt)
    files = list(by_file.values())
    random.Random(f"{seed}\0assertions").shuffle(files)
    found: list[AssertionTask] = []
    looked_at = 0
    for file in files:
        if count == 0 or looked_at > LOOKED_AT_BYTES:
            break
        looked_at += sum(len(excerpt.text) for excerpt in file)
        used: set[str] = set()
        for excerpt in file:
            found += assertions_of(excerpt, used)
    turns = in_turn(found, lambda task: task.path, random.Random(f"{seed}\0values"))
    return list(islice(turns, count))


@dataclass(frozen=True)
class AskedValue:
    """An assertion's value in an excerpt: where it begins and ends, bytes, and where what ends it does.

    ``closing_byte`` is the end of the first sign after the value and the blanks behind it, or of a condition's line.
    """

    start_byte: int
    end_byte: int
    closing_byte: int
    in_condition: bool


def assertions_of(excerpt: Excerpt, used: set[str]) -> Iterator[AssertionTask]:
    """Those of a test whose value is not among ``used``, which grows by all values; none of what is no test."""
    data = excerpt.text.encode()
    for value in asked_values(excerpt, used):
        prefix = data[: value.start_byte].decode().rstrip(" ")
        target = data[value.start_byte : value.end_byte].decode()
        line = prefix.count("\n") + 1
        yield AssertionTask(excerpt.path, excerpt.language, line, prefix, target, value.in_condition)


def asked_values(excerpt: Excerpt, used: set[str]) -> Iterator[AskedValue]:
    """The values that `assertions_of` asks for. Cost: a syntax tree, and the lines of the values."""
    if not is_test(excerpt.path, excerpt.language):
        return
    data = excerpt.text.encode()
    tree = parse(data, excerpt.language)
    if tree is None:
        return
    comment = b"#" if excerpt.language == "python" else b"//"
    for start, end, in_condition in _values(tree.root_node, data, excerpt.language):
        target = data[start:end].decode()
        if target in used:
            continue
        used.add(target)
        line_end = data.find(b"\n", start)
        line_end = len(data) if line_end < 0 else line_end
        before = data[data.rfind(b"\n", 0, start) + 1 : start].rstrip(b" ")
        # A value on a line of its own, or one that is not found again in its line, cannot be compared with what is written.
        if not before or before.endswith(b"\t") or "\n" in target or target in _TRIVIAL:
            continue
        if not _VALUE_CHARACTERS[0] <= len(target) <= _VALUE_CHARACTERS[1]:
            continue
        rest = data[start:line_end].decode()
        if first_value(rest, excerpt.language, in_condition=in_condition) == target:
            behind = data[end:line_end]
            closing = line_end - len(behind.lstrip(b" \t"))
            closing += len(comment) if data.startswith(comment, closing) else 1
            yield AskedValue(start, end, line_end + 1 if in_condition else closing, in_condition)


def first_value(line: str, language: str, *, in_condition: bool = False) -> str:
    """What a line begins with, up to the comma, bracket, semicolon or comment that ends it, without blanks around it.

    Args:
        in_condition: a brace that opens a block at the end of the line ends it too.
    """
    if in_condition:
        line = line.rstrip().removesuffix("{")
    comment = "#" if language == "python" else "//"
    depth, quote, at = 0, "", 0
    while at < len(line):
        sign = line[at]
        if quote:
            at += sign == "\\"
            quote = "" if sign == quote else quote
        elif sign in "\"'`":
            quote = sign
        elif sign in _OPENING:
            depth += 1
        elif sign in _CLOSING or (sign in ",;" and depth == 0):
            if depth == 0:
                break
            depth -= sign in _CLOSING
        elif line.startswith(comment, at) and depth == 0:
            break
        at += 1
    return line[:at].strip()


def _values(root: Node, data: bytes, language: str) -> Iterator[tuple[int, int, bool]]:
    """Start and end (bytes) of the value of every assertion, and whether it ends a condition."""
    of = {"python": _python_value, "go": _go_value, "rust": _rust_value}.get(language)
    if language in _SCRIPTS:
        of = _script_value
    if of is None:
        return
    waiting = [root]
    while waiting:
        node = waiting.pop()
        waiting += reversed(node.children)
        value = of(node, data)
        if value is not None:
            first, last = value
            yield first.start_byte, last.end_byte, node.type == "if_statement"


def _text(node: Node | None, data: bytes) -> str:
    return "" if node is None else data[node.start_byte : node.end_byte].decode(errors="replace")


def _arguments(node: Node, data: bytes) -> list[Node]:
    """The arguments of a call, without comments."""
    found = node.child_by_field_name("arguments")
    return [] if found is None else [item for item in found.named_children if "comment" not in item.type]


def _right_side(node: Node | None, data: bytes) -> tuple[Node, Node] | None:
    """The right side of a comparison."""
    if node is None or node.type != "binary_expression":
        return None
    right = node.child_by_field_name("right")
    if right is None or _text(node.child_by_field_name("operator"), data) not in _COMPARING:
        return None
    return right, right


def _python_value(node: Node, data: bytes) -> tuple[Node, Node] | None:
    if node.type == "assert_statement":
        compared = node.named_children[0] if node.named_children else None
        if compared is None or compared.type != "comparison_operator" or compared.named_child_count != 2:
            return None
        if compared.children[1].type in ("in", "not in"):
            return None
        return compared.named_children[1], compared.named_children[1]
    if node.type != "call":
        return None
    function = node.child_by_field_name("function")
    name = function.child_by_field_name("attribute") if function is not None else None
    values = _arguments(node, data)
    if not _PYTHON_CALL.match(_text(name, data)) or len(values) < 2 or values[1].type == "keyword_argument":
        return None
    return values[1], values[1]


def _script_value(node: Node, data: bytes) -> tuple[Node, Node] | None:
    if node.type != "call_expression":
        return None
    function, values = node.child_by_field_name("function"), _arguments(node, data)
    if function is None or not values:
        return None
    if function.type == "identifier":
        name = _text(function, data)
        if name == "assert":
            return _right_side(values[0], data)
        return (
            (values[1], values[1])
            if name.startswith("assert") and _SCRIPT_EQUAL.match(name) and len(values) > 1
            else None
        )
    owner, name = (
        function.child_by_field_name("object"),
        _text(function.child_by_field_name("property"), data),
    )
    while owner is not None and owner.type == "member_expression":  # expect(...).not, expect(...).to.be
        owner = owner.child_by_field_name("object")
    if owner is None:
        return None
    if owner.type == "call_expression" and _text(owner.child_by_field_name("function"), data) == "expect":
        return (values[0], values[0]) if _SCRIPT_MATCHER.match(name) else None
    if _SCRIPT_CALL.match(_text(owner, data)) and _SCRIPT_EQUAL.match(name) and len(values) > 1:
        return values[1], values[1]
    return None


def _go_value(node: Node, data: bytes) -> tuple[Node, Node] | None:
    if node.type == "if_statement":
        block = node.child_by_field_name("consequence")
        if block is None or not _GO_FAILURE.search(data, block.start_byte, block.end_byte):
            return None
        return _right_side(node.child_by_field_name("condition"), data)
    if node.type != "call_expression":
        return None
    function, values = node.child_by_field_name("function"), _arguments(node, data)
    if function is None or _text(function.child_by_field_name("operand"), data) not in ("assert", "require"):
        return None
    at = (
        2 if values and len(_text(values[0], data)) <= 2 else 1
    )  # the test comes first, but for assert.New(t)
    if not _GO_CALL.match(_text(function.child_by_field_name("field"), data)) or len(values) <= at:
        return None
    return values[at], values[at]


def _rust_value(node: Node, data: bytes) -> tuple[Node, Node] | None:
    """Of a macro, whose arguments are no tree but words."""
    if node.type != "macro_invocation":
        return None
    name = _text(node.child_by_field_name("macro"), data).rpartition("::")[2]
    tree = next((item for item in node.children if item.type == "token_tree"), None)
    words = [] if tree is None else tree.children[1:-1]
    parts: list[list[Node]] = [[]]
    for word in words:
        if word.type == ",":
            parts.append([])
        else:
            parts[-1].append(word)
    value: list[Node] = []
    if _RUST_PAIR.match(name) and len(parts) > 1:
        value = parts[1]
    elif _RUST_TRUTH.match(name):
        at = next((at for at, word in enumerate(parts[0]) if word.type in _COMPARING[:2]), len(parts[0]))
        value = parts[0][at + 1 :]
    kinds = [word.type for word in value]
    if not value or kinds.count("<") + 2 * kinds.count("<<") != kinds.count(">") + 2 * kinds.count(">>"):
        return None  # a comma within the types of a generic was taken for the end
    return value[0], value[-1]
