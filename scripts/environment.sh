# Sourced by the other scripts: goes to the project's root and makes .venv hold the package with the given extras.
# Uses uv when it is there, else pip. Does nothing when pyproject.toml has not changed since the last time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    for name in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
        if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    echo "mlx-gardener needs Python 3.11 or newer; install it, or name one with PYTHON=/path/to/python." >&2
    exit 1
}

install_with_uv() { # python, extras
    export UV_SYSTEM_CERTS=true
    { [ -x .venv/bin/python ] || uv venv --quiet --seed --python "$1" .venv; } &&
        uv pip install --quiet --python .venv/bin/python -e ".$2"
}

prepare_environment() { # extras: "" or "[test]"
    install "$1"
    .venv/bin/python scripts/precompile_header.py || echo "Kernels will take longer to compile." >&2
}

install() { # extras
    local extras="$1" stamp=".venv/.installed$1" python
    if [ -f "$stamp" ] && cmp -s pyproject.toml "$stamp"; then
        return
    fi
    python="$(find_python)"
    echo "Setting up .venv (a few minutes the first time: about 1.5 GB of packages) ..." >&2
    # uv is faster, pip knows the machine's own index and certificates; where uv cannot, pip does it.
    if ! { command -v uv >/dev/null 2>&1 && install_with_uv "$python" "$extras"; }; then
        [ -x .venv/bin/python ] || "$python" -m venv .venv
        .venv/bin/python -m ensurepip >/dev/null 2>&1 || true
        # As uv does, modules are compiled when they are first imported: of 10,000 files in these packages few ever are.
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -e ".$extras"
    fi
    cp pyproject.toml "$stamp"
}
