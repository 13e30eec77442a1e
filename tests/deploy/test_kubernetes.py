"""The manifests in deploy/k8s agree with the compose file. The workflow `deploy` checks them against the schemas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.deploy.test_compose import DEPLOY, SERVICES

CUSTOMIZATION = YAML(typ="safe").load((DEPLOY / "kustomization.yaml").read_text())


def objects() -> Iterator[dict[str, Any]]:
    for path in sorted((DEPLOY / "k8s").glob("*.yaml")):
        yield from YAML(typ="safe").load_all(path.read_text())


PODS = {
    one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in objects() if "template" in one.get("spec", {})
}
CONTAINERS = {
    one["name"]: (pod, one) for pod in PODS.values() for one in [*pod.get("initContainers", []), *pod["containers"]]
}


def test_every_manifest_is_part_of_the_deployment() -> None:
    assert sorted(CUSTOMIZATION["resources"]) == sorted(f"k8s/{path.name}" for path in (DEPLOY / "k8s").glob("*.yaml"))
    for maker in (*CUSTOMIZATION["configMapGenerator"], *CUSTOMIZATION["secretGenerator"]):
        for file in maker.get("files", []):
            path = file.rpartition("=")[2]
            assert path.startswith("secrets/") or (DEPLOY / path).is_file()


def test_the_same_services_run_as_with_compose() -> None:
    assert set(CONTAINERS) == set(SERVICES) - {"workspace", "worker-gpu", "tools"}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_has_a_read_only_root_no_privileges_and_limited_memory(name: str) -> None:
    pod, container = CONTAINERS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"]["drop"] == ["ALL"]
    assert name == "setup" or "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", ["postgres", "s3", "proxy"])
def test_other_projects_images_are_those_of_compose(name: str) -> None:
    image = CONTAINERS[name][1]["image"]
    assert f":-{image}}}" in (DEPLOY / "compose.yaml").read_text()


def test_secrets_are_files_and_not_in_the_manifests() -> None:
    assert not [one for one in objects() if one["kind"] == "Secret"]
    for name, (_, container) in CONTAINERS.items():
        for variable in container.get("env", []):
            if re.search("PASSWORD|SECRET|TOKEN", variable["name"]):
                assert variable["value"].startswith("/run/secrets/"), name


def test_what_uses_the_workspace_is_one_pod_that_sees_its_processes() -> None:
    pod = PODS["workspace"]
    assert pod["shareProcessNamespace"] is True
    assert [one["name"] for one in pod["containers"]] == ["worker", "service", "page"]
