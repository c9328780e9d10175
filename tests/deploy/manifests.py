"""Reads the manifests of deploy/kubernetes as documents, with small helpers for the tests."""

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from tests.support.processes import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
BASE, GPU = KUBERNETES / "base", KUBERNETES / "overlays" / "gpu"
# The oldest version that has all used fields, and the newest version with schemas.
VERSIONS = ("1.30", "1.37")
# The workloads. Their containers have the same names.
SERVICES = ("inference-server", "http-bridge")

Document = dict[str, Any]


def read(path: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def listed(folder: Path, key: str) -> list[Path]:
    """Return the files that a kustomization names."""
    (kustomization,) = read(folder / "kustomization.yaml")
    names = [entry["path"] if isinstance(entry, dict) else entry for entry in kustomization.get(key, [])]
    return [path for name in names if (path := folder / name).is_file()]


@cache
def rendered(folder: Path) -> tuple[Document, ...]:
    """Return the documents of a folder: as kustomize builds them if it is installed, else as they are in the files."""
    command = (
        ["kustomize", "build"]
        if shutil.which("kustomize")
        else ["kubectl", "kustomize"]
        if shutil.which("kubectl")
        else []
    )
    if command:
        done = subprocess.run([*command, folder], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return tuple(yaml.safe_load_all(done.stdout))
    if folder != BASE:
        pytest.skip("there is neither kustomize nor kubectl here to render the overlay with")
    return tuple(document for path in listed(folder, "resources") for document in read(path))


def problems(document: Document, version: str, *, is_patch: bool = False) -> list[str]:
    """Return the errors by that Kubernetes' schema, unknown fields included. A patch may be incomplete."""
    folder = f"kubernetes-json-schema/v{version}.0-local-strict"
    group, _, api = document["apiVersion"].rpartition("/")
    kind = "-".join(filter(None, [document["kind"].lower(), group.partition(".")[0], api]))
    schema = schema_contents(f"{folder}/{kind}.json", version)
    definitions = schema_contents(f"{folder}/_definitions.json", version)
    registry = Resource.from_contents(definitions) @ (Resource.from_contents(schema) @ Registry())
    found = jsonschema.Draft202012Validator(schema, registry=registry).iter_errors(document)
    return [
        f"{error.json_path}: {error.message}" for error in found if not (is_patch and error.validator == "required")
    ]


def of_kind(documents: tuple[Document, ...], kind: str) -> dict[str, Document]:
    """Return the documents of that kind by name."""
    return {one["metadata"]["name"]: one for one in documents if one["kind"] == kind}


def pod(workload: Document) -> Document:
    spec: Document = workload["spec"]["template"]["spec"]
    return spec


def container(workload: Document) -> Document:
    (only,) = pod(workload)["containers"]
    assert isinstance(only, dict)
    return only


def settings(workload: Document) -> dict[str, str]:
    """Return the container's environment variables that have a literal value."""
    return {entry["name"]: entry["value"] for entry in container(workload)["env"] if "value" in entry}


def walk(document: Any, key: str) -> Iterator[Any]:
    """Yield every value under that key, at any depth."""
    if isinstance(document, dict):
        for name, value in document.items():
            if name == key:
                yield value
            yield from walk(value, key)
    elif isinstance(document, list):
        for value in document:
            yield from walk(value, key)
