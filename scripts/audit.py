"""Ask whether a known weakness is in one of the installed packages: ``python scripts/audit.py``, also run by scripts/test.

pip-audit asks the Python Package Index, then OSV. A weakness that a newer version mends is an error; one that nobody has
mended yet is said. Where neither database answers, that is said too and is no error: tests work without a network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import click

_SERVICES = ("pypi", "osv")


@click.command()
@click.option("--timeout", default=120.0, show_default=True, help="Seconds to wait for each database.")
def main(timeout: float) -> None:
    """Audit the packages of this environment."""
    if find_spec("pip_audit") is None:
        raise click.ClickException("pip-audit is not installed; install it with `pip install -e '.[test]'`.")
    for service in _SERVICES:
        packages = ask(service, timeout)
        if packages:
            break
        click.echo(f"audit: the database of {service} cannot be reached", err=True)
    else:
        click.echo("audit: not made, as no database answers; it is no error")
        return
    found = [(package, weakness) for package in packages for weakness in package["vulns"]]
    for package, weakness in found:
        mended = ", ".join(weakness["fix_versions"]) or "nothing yet"
        click.echo(f"audit: {package['name']} {package['version']}: {weakness['id']}, mended by {mended}")
    click.echo(f"audit: {len(packages)} packages, {len(found)} known weaknesses")
    sys.exit(any(weakness["fix_versions"] for _, weakness in found))


def ask(service: str, timeout: float) -> list[dict[str, Any]]:
    """The packages that ``service`` knows, with their weaknesses; empty where it does not answer."""
    command = (sys.executable, "-m", "pip_audit", "--vulnerability-service", service, "--format", "json")
    options = ("--progress-spinner", "off", "--skip-editable", "--timeout", "5")
    try:
        done = subprocess.run((*command, *options), capture_output=True, timeout=timeout, check=False)
        packages = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return []
    return [package for package in packages if "vulns" in package]


if __name__ == "__main__":
    main()
