"""The pictures of the architecture and of a run: ``.venv/bin/python scripts/draw_house.py [DIRECTORY]``.

In: the package's imports, as ``lint-imports`` reads them. Out: house.svg and run.svg in docs/pictures, or in DIRECTORY. An
arrow is an import; one that also goes by way of another room is left out. Cost: some seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import grimp
from make_pictures import PICTURES, arrow, box, write

from mlx_gardener.report.svg import colour, line, picture, text

#: Where each room stands from left (0) to right (1), so that no arrow runs behind another room, and what it is for.
ROOMS = {
    "cli": (0.6, "one file per command"),
    "ui": (0.62, "the web page"),
    "api": (0.14, "for scripts and notebooks"),
    "lifecycle": (0.36, "staleness, forgetting"),
    "serve": (0.62, "answers editors"),
    "editors": (0.88, "editors' settings"),
    "runs": (0.24, "a training as a process"),
    "report": (0.36, "terminal, HTML, notebook"),
    "training": (0.12, "loop, checkpoints"),
    "evaluate": (0.47, "arms, guards, verdict"),
    "engine": (0.25, "a step under a budget"),
    "adapter": (0.74, "weights to files and back"),
    "retrieval": (0.495, "code in front of a prompt"),
    "dataset": (0.25, "chunks to token rows"),
    "model": (0.4, "base, tokenizer, LoRA"),
    "registry": (0.74, "projects in SQLite"),
    "source": (0.4, "a repository to chunks"),
    "events": (0.74, "what a run tells"),
    "config": (0.4, "one configuration"),
    "platform": (0.68, "macOS and Linux"),
    "errors": (0.54, "what a user can meet"),
}
_WIDTH, _BOX, _FLOOR = 720.0, (164.0, 42.0), 66.0
_PAPER = "<style>.paper{fill:#fff}@media (prefers-color-scheme:dark){.paper{fill:#0d1117}}.small{font-size:11px}</style>"


def imports() -> dict[str, set[str]]:
    """Which rooms each room imports."""
    graph = grimp.build_graph("mlx_gardener", cache_dir=None)
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module in graph.modules - {"mlx_gardener", "mlx_gardener.__main__"}:
        room = module.split(".")[1]
        for imported in graph.find_modules_directly_imported_by(module) - {"mlx_gardener"}:
            found[room] |= {imported.split(".")[1]} - {room}  # a KeyError here: give the new room a place
    return found


def reachable(rooms: dict[str, set[str]], room: str) -> set[str]:
    """All rooms that a room needs, also by way of others."""
    return rooms[room].union(*(reachable(rooms, other) for other in rooms[room]))


def floors(rooms: dict[str, set[str]]) -> list[list[str]]:
    """Rooms from top to bottom, each right below the lowest room that imports it."""

    def depth(room: str) -> int:
        return max((1 + depth(other) for other in rooms if room in rooms[other]), default=0)

    depths = {room: depth(room) for room in rooms}
    return [[room for room in ROOMS if depths[room] == floor] for floor in range(max(depths.values()) + 1)]


def house() -> str:
    """The rooms on their floors, and what imports what."""
    rooms = imports()
    width, height = _BOX
    places: dict[str, tuple[float, float]] = {}
    for floor, names in enumerate(floors(rooms)):
        for name in names:
            places[name] = ROOMS[name][0] * _WIDTH, 24 + floor * _FLOOR
    parts = [_PAPER]
    for room, needed in rooms.items():
        for other in sorted(needed):
            if not any(other in reachable(rooms, way) for way in needed - {other}):
                (x1, y1), (x2, y2) = places[room], places[other]
                parts.append(line(x1, y1 + height, x2, y2 - 5, stroke=colour("grey")))
                parts.append(f'<circle cx="{x2:.1f}" cy="{y2 - 3:.1f}" r="3" style="fill:{colour("grey")}"/>')
    for room, (x, y) in places.items():
        parts.append(
            f'<rect class="paper" x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:g}" height="{height:g}" rx="5" '
            f'style="stroke:{colour("blue")}" stroke-width="2"/>'
        )
        parts.append(text(x, y + 18, room, anchor="middle", bold=True))
        parts.append(f'<g class="small">{text(x, y + 34, ROOMS[room][1], anchor="middle")}</g>')
    count = sum(len(needed) for needed in rooms.values())
    title = f"{len(rooms)} rooms on {len(floors(rooms))} floors; {count} imports between them, all of them downwards"
    parts.append(text(0, 14, title, bold=True))
    bottom = max(y for _, y in places.values()) + height
    return picture(parts, title=title, height=bottom + 10, width=_WIDTH)


def run() -> str:
    """The processes of a training, and the phases that its worker goes through."""
    parts = [text(0, 14, "A training: who starts whom, who tells whom", bold=True)]
    for x, name, what in (
        (0, "command, notebook", "starts and watches"),
        (210, "supervisor", "starts it again if it dies"),
        (420, "worker", "goes through the phases"),
    ):
        parts.append(box(x, 28, 170, name, "blue"))
        parts.append(f'<g class="small">{text(x + 85, 74, what, anchor="middle")}</g>')
    parts += [_PAPER, arrow(170, 43, 208, 43, "blue"), arrow(380, 43, 418, 43, "blue")]
    phases = ("initializing", "preparing data", "starting training", "training", "completing")
    made = ("which base", "token rows", "plan of memory", "checkpoints", "adapter, evidence")
    for number, (phase, product) in enumerate(zip(phases, made, strict=True)):
        x = number * 124.0
        parts.append(box(x, 104, 112, phase, "purple"))
        parts.append(f'<g class="small">{text(x + 56, 150, product, anchor="middle")}</g>')
        if number:
            parts.append(arrow(x - 12, 119, x - 1, 119, "purple"))
    parts += [
        line(505, 80, 505, 92, stroke=colour("purple")),
        line(56, 92, 505, 92, stroke=colour("purple")),
        arrow(56, 92, 56, 103, "purple"),
        box(0, 176, 290, "events.jsonl: what the worker tells", "yellow"),
        box(318, 176, 290, "registry: projects, trainings, adapters", "green"),
        text(
            0,
            228,
            "Whoever watches reads these two, from any terminal; a wish to stop is left in the registry.",
        ),
    ]
    title = "A command starts a supervisor, that a worker; its five phases end with a registered, measured adapter"
    return picture(parts, title=title, height=240, width=620)


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if sys.argv[1:] else PICTURES
    write("house", house(), directory)
    write("run", run(), directory)
