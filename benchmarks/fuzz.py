"""Coverage-guided fuzzing of every parser of bytes that others wrote (`tests/guard/targets.py`).

    pip install -e '.[test,fuzz]'
    python benchmarks/fuzz.py --minutes 10           ten minutes for each target, one after another
    python benchmarks/fuzz.py --minutes 1 source     only this one

libFuzzer (by Atheris, Linux) mutates inputs and keeps those that reach new branches of this package's code. What must
hold is that a parser gives a value or a `GardenerError` with a next step, and an endpoint an answer that is no defect: any other
exception, an abort, an input that takes over 10 seconds of processor time, 5 minutes or 3 GB is a finding, and so is a GGUF file that
takes more than four times its size and 4 MB.
Inputs kept and findings lie in ``.fuzz/``, so that a later call goes on from there, and says which findings are mended;
``results/fuzz.json`` adds up what all calls since ``--fresh`` did.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
#: Of the processor, which others do not take; and on the clock, for what hangs without computing.
SLOWEST_SECONDS, LONGEST_SECONDS = 10, 300
MOST_MEBIBYTES = 3072


@click.command()
@click.argument("names", nargs=-1)
@click.option("--minutes", default=10.0, show_default=True, help="For each target.")
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / ".fuzz", help="Inputs and findings.")
@click.option("--fresh", is_flag=True, help="Forget the inputs and counts of earlier calls.")
@click.option("--child", hidden=True)
@click.option("--replay", hidden=True, type=click.Path(path_type=Path))
def main(
    names: tuple[str, ...], minutes: float, work: Path, fresh: bool, child: str | None, replay: Path | None
) -> None:
    """Fuzz NAMES, or every target."""
    sys.path.insert(0, str(ROOT))
    if child is not None and replay is not None:
        from tests.guard.targets import TARGETS

        with tempfile.TemporaryDirectory() as directory:
            timed(TARGETS[child], replay.read_bytes(), Path(directory))
        return
    if child is not None:
        fuzz_here(child, work / child, minutes * 60)
        return
    from machine import RESULTS, describe, save

    from tests.guard.seeds import seeds
    from tests.guard.targets import TARGETS

    if fresh:
        shutil.rmtree(work, ignore_errors=True)
    known = RESULTS / "fuzz.json"
    earlier = json.loads(known.read_text(encoding="utf-8"))["targets"] if known.exists() and not fresh else {}
    result: dict[str, Any] = {
        "machine": describe(),
        "targets": earlier,
    }  # of those that another machine fuzzed
    for name in TARGETS:
        place = work / name
        for part in ("corpus", "findings"):
            (place / part).mkdir(parents=True, exist_ok=True)
        if not names or name in names:
            for number, data in enumerate(seeds(name)):
                (place / "corpus" / f"seed-{number}").write_bytes(data)
            click.echo(f"{name}: {json.dumps(fuzz(name, place, minutes * 60))}")
        totals = place / "totals.json"
        if totals.exists():
            result["targets"][name] = json.loads(totals.read_text(encoding="utf-8"))
    click.echo(f"Wrote {save('fuzz', result)}")


def fuzz(name: str, place: Path, seconds: float) -> dict[str, Any]:
    """Fuzz one target in child processes until the time is over; adds to its totals and returns them."""
    totals_file = place / "totals.json"
    totals: dict[str, Any] = (
        json.loads(totals_file.read_text(encoding="utf-8"))
        if totals_file.exists()
        else {"seconds": 0.0, "executions": 0}
    )
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 1:
        started = time.monotonic()
        done = subprocess.run(
            (sys.executable, __file__, "--child", name, "--work", str(place.parent), "--minutes", f"{left / 60:.3f}"),
            capture_output=True,
            check=False,
        )  # fmt: skip
        said = done.stderr.decode(errors="replace")
        (place / "log.txt").write_text(said, encoding="utf-8")
        totals["seconds"] = round(totals["seconds"] + time.monotonic() - started, 1)
        totals["executions"] += max(map(int, re.findall(r"^#(\d+)", said, re.M)), default=0)
        seen = [(int(edges), int(features)) for edges, features in re.findall(r"cov: (\d+) ft: (\d+)", said)]
        if seen:
            totals["edges"], totals["features"] = max(seen)
        if done.returncode != 0 and not re.search(r"ERROR: libFuzzer|SUMMARY:", said):
            raise click.ClickException(f"The fuzzer of {name} could not run:\n{said[-2000:]}")
    kept = [*place.glob("corpus/*")]
    still = [file.name for file in inputs_of(place) if not is_answered(name, file, place)]
    told = titles_of(place)
    totals |= {
        "inputs_kept": len(kept),
        "findings": [told[file] for file in told if file in still],
        "found_and_mended": [told[file] for file in told if file not in still],
    }
    totals_file.write_text(json.dumps(totals, indent=2), encoding="utf-8")
    return totals


def inputs_of(place: Path) -> list[Path]:
    """The inputs that were findings."""
    return [file for file in sorted(place.glob("findings/*")) if file.suffix != ".txt"]


def titles_of(place: Path) -> dict[str, str]:
    """For every finding by its file's name: an exception and where it was raised, or what libFuzzer calls its file."""
    return {
        file.name: text.read_text(encoding="utf-8").splitlines()[0]
        if (text := file.with_suffix(".txt")).exists()
        else file.name
        for file in inputs_of(place)
    }


def is_answered(name: str, file: Path, place: Path) -> bool:
    """Whether an input that was a finding is answered by the code as it is now."""
    command = (sys.executable, __file__, "--child", name, "--work", str(place.parent), "--replay", str(file))
    try:
        return (
            subprocess.run(command, capture_output=True, timeout=LONGEST_SECONDS, check=False).returncode == 0
        )
    except subprocess.TimeoutExpired:
        return False


def fuzz_here(name: str, place: Path, seconds: float) -> None:
    """What a child does; never returns, as libFuzzer ends its process."""
    import atheris

    import mlx_gardener  # noqa: F401  # isort: skip
    import mlx.core  # noqa: F401

    with atheris.instrument_imports(include=["mlx_gardener", "tests.guard"]):
        from tests.guard.targets import TARGETS

    target: Callable[[bytes, Path], None] = TARGETS[name]
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))

    def once(data: bytes) -> None:
        try:
            timed(target, data, scratch)
        except BaseException as error:
            note(error, data, place / "findings")

    options = [
        f"-max_total_time={int(seconds)}",
        f"-timeout={LONGEST_SECONDS}",
        f"-rss_limit_mb={MOST_MEBIBYTES}",
        f"-artifact_prefix={place / 'findings'}/",
        "-max_len=60000",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(place / "corpus")], once)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def timed(target: Callable[[bytes, Path], None], data: bytes, scratch: Path) -> None:
    """Call ``target``.

    Raises:
        TimeoutError: it took too much of the processor.
    """
    began = time.process_time()
    target(data, scratch)
    if (took := time.process_time() - began) > SLOWEST_SECONDS:
        raise TimeoutError(f"{took:.1f} s of processor time")


def note(error: BaseException, data: bytes, findings: Path) -> None:
    """Write an exception down, once for each place it is raised at, and go on."""
    frames = traceback.extract_tb(error.__traceback__)
    where = next((frame for frame in reversed(frames) if "mlx_gardener" in frame.filename), frames[-1])
    title = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
    file = findings / hashlib.sha256(title.encode()).hexdigest()[:12]
    if not file.exists():
        file.write_bytes(data)
        text = "".join(traceback.format_exception(error))
        file.with_suffix(".txt").write_text(f"{title}\n{text}", encoding="utf-8", errors="replace")


if __name__ == "__main__":
    main()
