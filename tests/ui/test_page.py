"""The page without a browser: its files, who may ask, and that every answer is what the commands' functions say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from mlx_gardener.config import LoraConfig, load_config
from mlx_gardener.model import load_base
from mlx_gardener.registry import ProjectRegistry
from mlx_gardener.ui import page_address, page_token
from tests.support.adapters import make_adapter
from tests.support.pages import TOKEN, Asking, tiny

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
STATIC = Path(__file__).parents[2] / "mlx_gardener" / "ui" / "static"


# The files, and who may ask.


def test_a_browser_gets_the_page_and_a_client_of_ollama_what_it_looks_for(page: Asking) -> None:
    shown = httpx.get(page.address + "/", headers=BROWSER)
    assert shown.headers["content-type"] == "text/html; charset=utf-8" and "<title>mlx-gardener" in shown.text
    for headers in ({}, {"accept": "*/*"}, {"accept": "application/json"}):
        assert httpx.get(page.address + "/", headers=headers).text == "Ollama is running"
    names = set(
        re.findall(r'"/ui/([\w.]+)"', shown.text + "".join(f.read_text() for f in STATIC.glob("*.js")))
    )
    assert {"app.js", "style.css", "dom.js"} <= names
    for name in [*names, "train.js", "verdict.js"]:
        assert httpx.get(f"{page.address}/ui/{name}").status_code == 200, name
    assert httpx.get(f"{page.address}/ui/../app.py").status_code == 404


def test_nothing_of_the_page_is_fetched_from_elsewhere_or_run_from_text(page: Asking) -> None:
    for answer in (httpx.get(page.address + "/", headers=BROWSER), page.raw("GET", "projects")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff" and "frame-ancestors 'none'" in policy
    for file in STATIC.iterdir():
        text = file.read_text()
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), file.name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
        ), file.name


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer something-else-entirely"}, {"authorization": TOKEN}]
)
def test_without_the_token_nothing_is_told_or_changed_on_loopback_either(
    page: Asking, small: str, registry: ProjectRegistry, headers: dict[str, str]
) -> None:
    for method, path, body in (("GET", "projects", None), ("POST", "remove", {"project": small})):
        done = page.raw(method, path, headers=headers, json=body)
        assert done.status_code == 401 and "token" in done.json()["error"]["message"]
    assert [item.name for item in registry.list_projects()] == [small]


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"origin": "https://example.org"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"host": "rebound.example.org"}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
)
def test_a_page_of_another_place_changes_nothing_even_with_the_token(
    page: Asking, small: str, registry: ProjectRegistry, more: dict[str, str], status: int
) -> None:
    headers = {**page.headers, "content-type": "application/json", **more}
    done = page.raw("POST", "remove", headers=headers, content=json.dumps({"project": small}))
    assert done.status_code == status
    assert [item.name for item in registry.list_projects()] == [small]


def test_a_server_with_a_token_of_its_own_opens_the_page_and_asks_for_that(
    open_page: Callable[..., Asking],
) -> None:
    page = open_page(token="the-token-of-this-server")
    assert httpx.get(page.address + "/", headers=BROWSER).status_code == 200
    assert httpx.get(page.address + "/ui/app.js").status_code == 200
    assert httpx.get(page.address + "/v1/models").status_code == 401
    assert page.raw("GET", "projects").status_code == 401
    page.headers = {"authorization": "Bearer the-token-of-this-server"}
    assert page.get("projects")["projects"] == []


def test_the_command_tells_an_address_that_opens_the_page(small: str, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "mlx_gardener", "ui", "--port", "0", "--json")
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            told = json.loads(running.stdout.readline())
            address, _, token = told["page"].partition("/#token=")
            assert told["event"] == "ready" and address == told["address"]
            asking = Asking(address)
            asking.headers = {"authorization": f"Bearer {token}"}
            assert [one["name"] for one in asking.get("projects")["projects"]] == [small]
            assert (
                asking.raw("GET", "projects", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 401
            )
        finally:
            running.terminate()
    assert running.returncode in (0, -15, 143)


def test_an_address_holds_only_a_token_that_was_made_for_it() -> None:
    assert page_address("http://127.0.0.1:1", None) == "http://127.0.0.1:1/"
    assert page_address("http://127.0.0.1:1", "a#b") == "http://127.0.0.1:1/#token=a%23b"
    assert page_token("given-to-the-server") == "given-to-the-server"
    assert page_token(None) != page_token(None)


# Projects.


def test_a_repository_is_added_by_its_path_and_removed(
    page: Asking, repository: Path, registry: ProjectRegistry
) -> None:
    assert page.get("projects")["projects"] == []
    assert page.post("add", path=str(repository)) == {"name": "repository"}
    (row,) = page.get("projects")["projects"]
    assert (
        row["path"] == str(repository)
        and row["is_there"]
        and row["version"] is None
        and row["status"] == "not_started"
    )
    assert page.get("projects/repository/verdict")["version"] is None
    one = page.get("projects/repository")
    assert one["versions"] == [] and "train" in one["way_to_an_adapter"]
    assert "does not exist" in page.refused("add", path=str(repository / "gone"))
    assert page.raw("GET", "projects/nobody").status_code == 404
    page.post("remove", project="repository")
    assert registry.list_projects() == [] and repository.is_dir()


def test_a_repository_that_cannot_be_looked_at_hides_no_other(
    page: Asking, small: str, registry: ProjectRegistry, tmp_path: Path
) -> None:
    registry.register_project("odd", tmp_path / ("x" * 300))  # as one in a directory that may not be entered
    rows = {one["name"]: one["is_there"] for one in page.get("projects")["projects"]}
    assert rows == {"odd": False, small: True}
    assert page.get("sizes").keys() == {"odd", small}
    assert page.raw("GET", "projects/odd/scan").status_code == 400


def test_versions_are_activated_rolled_back_exported_and_removed(
    page: Asking, small: str, registry: ProjectRegistry, tiny_model_dir: Path, tmp_path: Path
) -> None:
    base = load_base(str(tiny_model_dir))
    for seed in (1, 2):
        make_adapter(registry, small, base, LoraConfig(rank=2), seed=seed)
    assert "v2" in page.post("activate", project=small, version="v2")["told"]
    assert page.post("rollback", project=small)["told"] == "v1 of small is active, v2 was."
    shown = page.get(f"projects/{small}")
    assert [(one["version"], one["active"]) for one in shown["versions"]] == [
        ("v1", True),
        ("v2", False),
    ] or shown
    assert shown["bytes"] >= sum(one["bytes"] for one in shown["versions"]) > 0
    (row,) = page.get("projects")["projects"]
    assert (row["version"], row["active"], row["verdict"]) == ("v1", True, None)
    assert page.get("sizes")[small]["bytes"] == shown["bytes"]
    done = page.post("export", project=small, version="v1", form="mlx", destination=str(tmp_path / "out"))
    assert (tmp_path / "out" / "adapters.safetensors").is_file() and str(tmp_path / "out") in done["told"]
    assert "No directory" in page.refused("export", project=small, form="mlx", destination=" ")
    page.post("remove", project=small, version="v2")
    assert [item.version for item in registry.list_adapters(small)] == ["v1"]
    assert page.get(f"projects/{small}/verdict")["evidence"] is None


# Scan.


def test_a_folder_that_is_left_out_is_written_to_the_project_and_read_again_after(
    page: Asking, small: str, registry: ProjectRegistry
) -> None:
    before = page.get(f"projects/{small}/scan")
    folders = {one["path"]: one for one in before["folders"]}
    assert set(folders) == {"", "core", "tools", "web"}
    below = sum(folders[name]["files"] for name in ("core", "tools", "web"))
    assert folders[""]["files"] == before["files_kept"] == below + 1  # and README.md
    assert set(folders["web"]["languages"]) == {"javascript"}
    assert page.post("leave-out", project=small, path="web")["left_out"] == ["web"]
    assert registry.forgotten_paths(small) == ["web"]
    after = page.get(f"projects/{small}/scan")
    assert "web" not in {one["path"] for one in after["folders"]} and after["left_out"] == ["web"]
    (rule,) = (one for one in after["dropped"] if one["rule"] == "excluded")
    assert rule["count"] == folders["web"]["files"] and rule["title"] == "excluded by settings"
    assert page.post("leave-out", project=small, path="web", leave_out=False)["left_out"] == []
    assert page.get(f"projects/{small}/scan")["files_kept"] == before["files_kept"]
    assert "was not left out" in page.refused("leave-out", project=small, path="web", leave_out=False)
    for outside in ("../elsewhere", "/etc", "."):
        assert "no path within" in page.refused("leave-out", project=small, path=outside)
    assert registry.forgotten_paths(small) == []


def test_what_a_training_left_out_by_hand_is_read_again_when_the_project_says_so(
    page: Asking, small: str, registry: ProjectRegistry
) -> None:
    """The patterns that leaving out wrote stand in the last training's settings still; those of its user stay."""
    record = registry.begin_training(small, {"data": {"exclude": ["/web", "*.md", "/a\\ b"]}})
    registry.finish_training(record.id, "failed", "", {})  # type: ignore[arg-type]
    assert "web" in {one["path"] for one in page.get(f"projects/{small}/scan")["folders"]}
    assert page.get(f"projects/{small}/settings")["more"] == 'data.exclude=["*.md"]'


# Trainings.


@pytest.mark.usefixtures("known_home")
def test_a_plan_follows_the_budget_and_says_what_is_refused(
    page: Asking, small: str, tiny_model_dir: Path
) -> None:
    plan = page.post("plan", project=small, **tiny(tiny_model_dir))
    assert plan["refusal"] is None and plan["budget_bytes"] == 2**30 and "tokens/s" in plan["time"]
    assert sum(part["bytes"] for part in plan["parts"]) == plan["peak_bytes"]
    assert plan["left_bytes"] == plan["budget_bytes"] - plan["peak_bytes"]
    assert [one["budget_bytes"] for one in plan["others"]] == [2 * 2**30, 3 * 2**30, 5 * 2**30]
    larger = page.post("plan", project=small, **{**tiny(tiny_model_dir), "budget": 2.0})
    assert larger["budget_bytes"] == 2**31
    little = page.post("plan", project=small, **{**tiny(tiny_model_dir), "budget": 0.01})
    assert little["refusal"]["class"] == "MemoryBudgetError" and "parts" not in little
    few = page.post("plan", project=small, **{**tiny(tiny_model_dir), "more": "min_training_chunks=5000"})
    assert few["refusal"]["class"] == "DataError" and few["parts"]
    assert "lora.rnk" in page.refused("plan", project=small, more="lora.rnk=8")
    assert "none.json cannot be read" in page.refused("plan", project=small, more="parallel.hosts=none.json")
    assert "is not KEY=VALUE" in page.refused("plan", project=small, more="rank")


def test_what_waits_for_its_training_is_shown_and_taken_out(
    page: Asking, small: str, registry: ProjectRegistry
) -> None:
    assert page.get("queue") == {"runs": False, "queue": []}
    assert "not in the queue" in page.refused("queue/remove", project=small)
    config = load_config(overrides={"model": "seedling"}).model_dump(mode="json")
    registry.queue.add(small, config, budget_bytes=2**30, priority=3)
    (entry,) = page.get("queue")["queue"]
    assert (entry["project"], entry["priority"], entry["status"]) == (small, 3, "waiting")
    assert page.post("queue/remove", project=small)["told"] == "small is out of the queue."
    assert page.get("queue")["queue"] == [] == registry.queue.entries()


# Whatever is sent.

ODD = [
    None,
    True,
    -1,
    1e308,
    2**70,
    "",
    " ",
    "\0",
    "~nobody/x",
    "../..",
    "<b>",
    "small",
    "\ud83d",
    "a" * 5000,
    [],
    {},
    ["small"],
    {"a": 1},
]
FIELDS = {
    "add": ("path", "name"),
    "activate": ("project", "version"),
    "rollback": ("project", "version"),
    "export": ("project", "version", "form", "destination"),
    "leave-out": ("project", "path", "leave_out"),
    "plan": ("project", "budget", "timeout", "epochs", "more"),
    "cancel": ("project",),
    "resume": ("project",),
    "queue/remove": ("project",),
    "try": ("project", "version", "input_prefix", "n_predict", "adapter"),
}


@pytest.mark.usefixtures("known_home")
@pytest.mark.parametrize("path", FIELDS)
def test_whatever_is_sent_is_answered_or_refused_and_is_no_defect(
    page: Asking, small: str, path: str
) -> None:
    good = {
        "project": small,
        "path": "web",
        "version": None,
        "form": "mlx",
        "model": "seedling",
        "input_prefix": "x",
    }
    for name in FIELDS[path]:
        for odd in ODD:
            done = page.raw(
                "POST",
                path,
                content=json.dumps({**good, name: odd}),
                headers={**page.headers, "content-type": "application/json"},
            )
            assert done.status_code in (200, 400), (name, odd, done.text)
            assert done.status_code == 200 or done.json()["error"]["message"]
    for text in ("", "{", "[]", "1", '{"project": "small"', "null", "[" * 1000):
        done = page.raw(
            "POST", path, content=text, headers={**page.headers, "content-type": "application/json"}
        )
        assert done.status_code == 400, (text, done.text)


def test_whatever_is_looked_for_is_found_or_not(page: Asking, small: str) -> None:
    for name in ("", "..", "%2e%2e", "small%00", "<b>", "a" * 300):
        for below in (
            "",
            "/scan",
            "/verdict",
            "/training",
            "/settings",
            "/staleness",
            "/compare?first=v1&second=v2",
        ):
            assert page.raw("GET", f"projects/{name}{below}").status_code in (400, 404), (name, below)
    assert page.raw("GET", "projects/small/compare?first=v1").status_code == 400
    assert page.raw("DELETE", "projects").status_code == 405
    assert page.raw("GET", "remove").status_code == 405
