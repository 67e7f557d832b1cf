"""The web page: projects, what would be read of them, their trainings, verdicts, and a place to try them.

In: requests of a browser beside those of editors, on the same server (`mlx_gardener.serve`). Out: JSON, server-sent events, and
the page's own files, which need no network and no build step. Nothing is done here that a command does not do by the same
functions. Whatever comes of a repository or a model is data in the answers; the page shows it as text and never as markup.
"""

from mlx_gardener.ui.page import make_page, page_address, page_token

__all__ = ["make_page", "page_address", "page_token"]
