"""What deploy/ promises, read from its files. What needs Docker is written down in docs/operations.md."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = YAML(typ="safe").load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(:-[^}]*)?\}")


def test_only_the_proxy_publishes_ports_and_by_default_to_this_machine() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
    assert all(port.startswith("${BIND:-127.0.0.1}:") for port in SERVICES["proxy"]["ports"])
    assert not [name for name, service in SERVICES.items() if service.get("network_mode") == "host"]
    assert COMPOSE["networks"]["inner"]["internal"] is True
    assert SERVICES["postgres"]["networks"] == SERVICES["s3"]["networks"] == ["inner"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_read_only_root_and_no_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    user = service.get("user")
    if service["image"].startswith("${IMAGE"):
        assert user is None  # the image's own, which is not root
        assert re.search(r"^USER captioning$", (DEPLOY / "Dockerfile").read_text(), flags=re.M)
    else:
        assert user not in (None, "root", "0")


@pytest.mark.parametrize("name", [name for name in SERVICES if name not in ("setup", "workspace", "tools")])
def test_a_service_that_runs_for_long_restarts_and_has_a_healthcheck(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert "test" in SERVICES[name]["healthcheck"]


def test_other_projects_images_are_pinned_to_a_release() -> None:
    text = (DEPLOY / "compose.yaml").read_text() + (DEPLOY / "Dockerfile").read_text()
    images = re.findall(r"(?:POSTGRES_IMAGE|S3_IMAGE|CADDY_IMAGE|PYTHON_IMAGE)(?::-|=)([\w./-]+:[\w.-]+)", text)
    assert len(images) == 6
    assert all(re.fullmatch(r"[\w/-]+:\d+\.\d+[\w.-]*", image) for image in images), images


def test_processes_that_share_the_workspace_see_each_other() -> None:
    users = {
        name
        for name, service in SERVICES.items()
        if any(str(volume).startswith("workspace:") for volume in service.get("volumes", []))
    }
    assert users == {"setup", "worker", "worker-gpu", "service", "page", "tools"}
    for name in users - {"setup"}:  # runs before all others
        assert SERVICES[name]["pid"] == "service:workspace"
        assert SERVICES[name]["hostname"] == "captioning"


def test_secrets_come_from_files_only() -> None:
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN", key):
                assert re.fullmatch(r"/run/secrets/\w+", value), f"{name}: {key}"
                assert key.endswith("_FILE")
                assert value.removeprefix("/run/secrets/") in service["secrets"], f"{name}: {key}"
    assert all(where["file"].startswith("./secrets/") for where in COMPOSE["secrets"].values())


@pytest.mark.parametrize(
    "path", ["deploy/secrets/token", "deploy/.env", ".dvc/config.local", ".git/config", "mlflow.db"]
)
def test_what_is_private_is_in_no_image_and_in_no_commit(path: str) -> None:
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] not in "#!"]
    assert any(Path(path).match(pattern) or path.startswith(f"{pattern}/") for pattern in patterns)
    if not path.startswith(".git/"):
        assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0


def test_an_image_has_all_files_of_the_repository_but_tests_and_pictures_of_the_docs() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    absent = {name for name in tracked if name and is_ignored(name)}
    assert {
        name for name in absent if not re.match(r"tests/|docs/(images|screenshots)/|deploy/\.env\.example$", name)
    } == set()


def is_ignored(name: str) -> bool:
    """Return whether .dockerignore leaves a file out: the last pattern that matches it or a folder above decides."""
    above = [name, *(str(folder) for folder in Path(name).parents)]
    ignored = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        words = re.escape(line.removeprefix("!"))
        pattern = words.replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if line and line[0] != "#" and any(re.fullmatch(pattern, path) for path in above):
            ignored = not line.startswith("!")
    return ignored


def test_a_change_of_our_code_installs_no_package_again() -> None:
    packages = (DEPLOY / "Dockerfile").read_text().partition(" AS packages")[2].partition("\nFROM ")[0]
    mounted = re.findall(r"--mount=type=bind,(\S+)", packages)
    assert set(mounted) == {"source=deploy/wheels,target=/wheels"}, "all other files would be inputs of the layer"
    assert re.findall(r"^COPY (.+)", packages, flags=re.M) == [
        "requirements.lock ./",
        "pyproject.toml README.md LICENSE ./",
    ]
    assert (DEPLOY / "wheels").is_dir(), "a build without wheels needs it too"


def test_every_setting_has_a_default_and_every_example_is_a_setting() -> None:
    used = dict(VARIABLE.findall((DEPLOY / "compose.yaml").read_text()))
    assert not [name for name, default in used.items() if not default]
    example = dict(re.findall(r"^(\w+)=(.*)$", (DEPLOY / ".env.example").read_text(), flags=re.M))
    assert set(example) - {"COMPOSE_PROFILES"} <= set(used)
    for name in set(example) - {"COMPOSE_PROFILES"}:
        assert used[name] == f":-{example[name]}", name


def test_the_gpu_worker_replaces_the_other() -> None:
    assert SERVICES["worker"]["profiles"] == ["cpu"]
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]
    assert SERVICES["worker"]["command"] == SERVICES["worker-gpu"]["command"]


def test_secrets_are_made_once_and_are_hard_to_guess(tmp_path: Path) -> None:
    script = tmp_path / "secrets.sh"
    script.write_bytes((DEPLOY / "secrets.sh").read_bytes())
    contents = []
    for _ in range(2):
        subprocess.run(["sh", str(script)], check=True, capture_output=True)
        contents.append({path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == set(COMPOSE["secrets"])
    assert len(set(contents[0].values())) == len(contents[0])
    assert all(re.fullmatch("[0-9a-f]{48}", value) for value in contents[0].values())
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0


def test_the_entrypoint_puts_secrets_and_database_addresses_into_the_environment(tmp_path: Path) -> None:
    inside = (DEPLOY / "entrypoint.sh").read_text()
    script = inside.replace(r"\/run\/secrets\/", str(tmp_path).replace("/", r"\/") + r"\/")
    assert script != inside
    (tmp_path / "password").write_text("abc")
    environment = {"PATH": "/usr/bin:/bin", "POSTGRES_PASSWORD_FILE": f"{tmp_path}/password", "OTHER_FILE": "/etc/x"}
    done = subprocess.run(
        ["sh", "-c", script, "entrypoint.sh", "env"], env=environment, capture_output=True, text=True, check=True
    )
    made = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert made["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg2://captioning:abc@postgres/mlflow"
    assert made["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == "postgresql+asyncpg://captioning:abc@postgres/prefect"
    assert "POSTGRES_PASSWORD" not in made
    assert "POSTGRES_PASSWORD_FILE" not in made
    assert made["OTHER_FILE"] == "/etc/x"
    (tmp_path / "password").unlink()
    done = subprocess.run(
        ["sh", "-c", script, "entrypoint.sh", "env"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 78
    assert "run deploy/secrets.sh" in done.stderr
