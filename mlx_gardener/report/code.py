"""Source text as HTML with syntax colour: escaped, its control characters spelled out, its length bounded.

Colours come from classes that `CSS` names; without it the text is plain. Cost: milliseconds an excerpt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from mlx_gardener.report.text import safe_lines

if TYPE_CHECKING:
    from pygments.lexer import Lexer

#: Excerpts are a few lines; what is longer is cut, so that a file of one huge line stays a page one can open.
MOST_CHARACTERS = 4000
#: By Pygments' short names of kinds of tokens, behind "y-": keywords (k...), strings (s), comments (c), numbers (m), names that are
#: defined, builtins.
CSS = """
[class^="y-k"], .y-ow { color: var(--mg-purple); }
[class^="y-s"] { color: var(--mg-green); }
[class^="y-c"] { color: var(--mg-grey); font-style: italic; }
[class^="y-m"] { color: var(--mg-orange); }
.y-nf, .y-nc, .y-nd, .y-nt, .y-fm { color: var(--mg-blue); }
[class^="y-nb"], .y-bp, .y-kt { color: var(--mg-yellow); }
"""


def highlight_code(text: str, path: str) -> Markup:
    """``text`` as safe HTML, coloured as its file's name says; plain where no grammar is known for it."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter

    shown = safe_lines(text)
    if len(shown) > MOST_CHARACTERS:
        shown = shown[:MOST_CHARACTERS] + " ..."
    lexer = _lexer_of(path.rpartition("/")[2])
    if lexer is None:
        return escape(shown)
    return Markup(highlight(shown, lexer, HtmlFormatter(nowrap=True, classprefix="y-")).removesuffix("\n"))


def _lexer_of(name: str) -> Lexer | None:
    """Pygments' grammar for a file of this name, None where it has none.

    Its own search compiles the patterns of all its grammars, a tenth of what a small training takes; an ending, or a name, that
    one grammar alone has needs none.
    """
    from pygments.lexers import get_all_lexers, get_lexer_by_name, get_lexer_for_filename
    from pygments.util import ClassNotFound

    wanted = {name, f"*.{name.rpartition('.')[2]}"}
    found = [aliases for _, aliases, patterns, _ in get_all_lexers(plugins=False) if wanted & set(patterns)]
    try:
        if len(found) == 1 and found[0]:
            return get_lexer_by_name(found[0][0], stripnl=False, ensurenl=False)
        return get_lexer_for_filename(name, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
