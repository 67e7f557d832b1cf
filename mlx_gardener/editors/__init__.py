"""Editors' settings: what to change so that an editor asks this machine's server, shown first, written, and undone.

In: an editor's name, a project, an address. Out: a change of one settings file, as text, and a record of it in the home from
which it is undone. Nothing but the named keys is touched: comments, order and layout stay.
"""

from mlx_gardener.editors.change import Change, apply, plan_change, undo
from mlx_gardener.editors.proof import is_running, prove

__all__ = ["Change", "apply", "is_running", "plan_change", "prove", "undo"]
