"""JSON with comments and trailing commas, changed where it must be and nowhere else.

JavaScript's grammar (tree-sitter) reads it and says at which bytes a value lies; a change replaces or inserts these bytes, and
is read again to see that the value, and no other, changed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mlx_gardener.errors import ConfigError

if TYPE_CHECKING:
    from tree_sitter import Node

Keys = tuple[str, ...]
_OPEN, _CLOSE = b"(", b"\n)"  # make an object an expression; a comment may be the last thing in it


def read(text: str) -> dict[str, Any]:
    """The object that ``text`` holds; an empty one where there are only spaces and comments.

    Raises:
        ConfigError: it is not JSON, even with comments, or holds no object.
    """
    found = _object(text)
    return {} if found is None else dict(_value(found))


def value_at(text: str, keys: Keys) -> Any:
    """The value at ``keys``, None where there is none.

    Raises:
        ConfigError: as `read`.
    """
    found: Any = read(text)
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def has(text: str, keys: Keys) -> bool:
    """Whether there is a value at ``keys``, null included.

    Raises:
        ConfigError: as `read`.
    """
    above = value_at(text, keys[:-1])
    return isinstance(above, dict) and keys[-1] in above


def put(text: str, keys: Keys, value: Any) -> str:
    """``text`` with ``value`` at ``keys``; objects on the way are made where they are missing.

    Raises:
        ConfigError: as `read`, or something that is no object lies on the way.
    """
    wanted = read(text)
    below = wanted
    for key in keys[:-1]:
        below = below.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(
                f"{key!r} in the settings is no object.",
                next_step="Correct it in the editor, then connect again.",
            )
    below[keys[-1]] = value
    node = _object(text)
    if node is None:
        newline = "" if not text or text.endswith("\n") else "\n"
        return _checked(f"{text}{newline}{json.dumps(wanted, indent=2, ensure_ascii=False)}\n", wanted)
    depth = 0
    while (pair := _pair(node, keys[depth])) is not None and depth < len(keys) - 1:
        node, depth = _part(pair, "value"), depth + 1
    for key in reversed(keys[depth + 1 :]):
        value = {key: value}
    data = _OPEN + text.encode() + _CLOSE
    if pair is not None:
        old = _part(pair, "value")
        new = _shown(value, _indent(data, pair), _step(data, node), _newline(text))
        return _checked(_replace(data, [(old.start_byte, old.end_byte, new)]), wanted)
    return _checked(_replace(data, _insertion(data, node, keys[depth], value, _newline(text))), wanted)


def drop(text: str, keys: Keys) -> str:
    """``text`` without the pair at ``keys``, and without its line where it had one of its own.

    Raises:
        ConfigError: as `read`.
    """
    node = _object(text)
    wanted = read(text)
    below = wanted
    for key in keys[:-1]:
        pair = None if node is None else _pair(node, key)
        node = None if pair is None else _part(pair, "value")
        below = below.get(key, {})
    pair = None if node is None else _pair(node, keys[-1])
    if node is None or pair is None:
        return text
    del below[keys[-1]]
    data = _OPEN + text.encode() + _CLOSE
    siblings = [child for child in node.children if child.type in ("pair", ",")]
    at = next(number for number, child in enumerate(siblings) if child.start_byte == pair.start_byte)
    start, end = pair.start_byte, pair.end_byte
    edits = []
    if at + 1 < len(siblings):
        end = siblings[at + 1].end_byte
    elif at > 0:
        comma = siblings[at - 1]
        edits.append((comma.start_byte, comma.end_byte, b""))
    line_start, line_end = data.rfind(b"\n", 0, start) + 1, data.find(b"\n", end)
    if (
        line_end >= 0
        and not data[line_start:start].strip()
        and not data[end:line_end].strip()
        and line_start > 0
    ):
        start, end = line_start, line_end + 1
    return _checked(_replace(data, [*edits, (start, end, b"")]), wanted)


def _object(text: str) -> Node | None:
    import tree_sitter_javascript
    from tree_sitter import Language, Parser

    tree = Parser(Language(tree_sitter_javascript.language())).parse(_OPEN + text.encode() + _CLOSE)
    meaning = [child for child in tree.root_node.children if child.type != "comment"]
    inner = [child for child in meaning[0].children if child.type != ";"] if len(meaning) == 1 else []
    if not text.strip() or _only_comments(text):
        return None
    if len(inner) == 1 and inner[0].type == "parenthesized_expression" and not tree.root_node.has_error:
        objects = [child for child in inner[0].named_children if child.type != "comment"]
        if len(objects) == 1 and objects[0].type == "object":
            return objects[0]
    raise ConfigError(
        "The settings are not JSON with comments, or no object.",
        next_step="Correct them in the editor, then connect again.",
    )


def _only_comments(text: str) -> bool:
    import tree_sitter_javascript
    from tree_sitter import Language, Parser

    tree = Parser(Language(tree_sitter_javascript.language())).parse(text.encode())
    return all(child.type == "comment" for child in tree.root_node.children)


def _value(node: Node) -> Any:
    text = (node.text or b"").decode()
    if node.type == "object":
        found = {}
        for child in node.named_children:
            if child.type == "pair":
                found[_key(child)] = _value(_part(child, "value"))
            elif child.type != "comment":
                raise _not_json(text)
        return found
    if node.type == "array":
        return [_value(child) for child in node.named_children if child.type != "comment"]
    try:
        return json.loads(text)
    except ValueError as error:
        raise _not_json(text) from error


def _not_json(text: str) -> ConfigError:
    return ConfigError(
        f"The settings have something at {text[:40]!r} that is not JSON.",
        next_step="Correct it in the editor.",
    )


def _part(pair: Node, name: str) -> Node:
    found = pair.child_by_field_name(name)
    if found is None:
        raise _not_json((pair.text or b"").decode())
    return found


def _key(pair: Node) -> str:
    return str(_value(_part(pair, "key")))


def _pair(node: Node, key: str) -> Node | None:
    """The last pair of that name, which is the one that counts."""
    pairs = [child for child in node.named_children if child.type == "pair" and _key(child) == key]
    return pairs[-1] if pairs else None


def _insertion(data: bytes, node: Node, key: str, value: Any, newline: str) -> list[tuple[int, int, bytes]]:
    pairs = [child for child in node.children if child.type == "pair"]
    name = json.dumps(key, ensure_ascii=False)
    if pairs and node.start_point.row == node.end_point.row:
        at = pairs[-1].end_byte
        return [(at, at, f", {name}: {json.dumps(value, ensure_ascii=False)}".encode())]
    step = _step(data, node)
    outer = _indent(data, node)
    indent = _indent(data, pairs[-1]) if pairs else outer + step
    line = f"{newline}{indent}{name}: ".encode() + _shown(value, indent, step, newline)
    if not pairs:
        brace = node.children[-1].start_byte
        rest = data[data.rfind(b"\n", 0, brace) + 1 : brace]
        if node.start_point.row != node.end_point.row and not rest.strip():  # the brace has a line of its own
            at = len(data[: brace - len(rest)].removesuffix(b"\n").removesuffix(b"\r"))
            return [(at, at, line)]
        return [(brace, brace, line + f"{newline}{outer}".encode())]
    last = pairs[-1]
    after = [child for child in node.children if child.start_byte >= last.end_byte]
    trailing = next((child for child in after if child.type == ","), None)
    at = (trailing or last).end_byte
    for child in after:  # what is said of the last pair on its line stays with it
        if child.type == "comment" and child.start_point.row == last.end_point.row:
            at = max(at, child.end_byte)
    if trailing is not None:
        return [(at, at, line + b",")]
    if at == last.end_byte:
        return [(at, at, b"," + line)]
    return [(last.end_byte, last.end_byte, b","), (at, at, line)]


def _shown(value: Any, indent: str, step: str, newline: str) -> bytes:
    lines = json.dumps(value, indent=step, ensure_ascii=False).split("\n")
    return f"{newline}{indent}".join(lines).encode()


def _indent(data: bytes, node: Node) -> str:
    line = data[data.rfind(b"\n", 0, node.start_byte) + 1 :].removeprefix(
        _OPEN if node.start_byte <= 1 else b""
    )
    return line[: len(line) - len(line.lstrip(b" \t"))].decode()


def _step(data: bytes, node: Node) -> str:
    """One level of indentation, as the settings have it; two spaces where they have none."""
    pairs = [child for child in node.children if child.type == "pair"]
    if pairs and pairs[0].start_point.row != node.start_point.row:
        outer, inner = _indent(data, node), _indent(data, pairs[0])
        if inner.startswith(outer) and len(inner) > len(outer):
            return inner[len(outer) :]
    return "  "


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _replace(data: bytes, edits: list[tuple[int, int, bytes]]) -> str:
    for start, end, new in sorted(edits, key=lambda edit: edit[0], reverse=True):
        data = data[:start] + new + data[end:]
    return data[len(_OPEN) : -len(_CLOSE)].decode()


def _checked(text: str, wanted: dict[str, Any]) -> str:
    if read(text) != wanted:
        raise ConfigError(
            "The settings have a form that cannot be changed safely.",
            next_step="Put the lines in by hand; docs/editors.md shows them.",
        )
    return text
