"""The lock files: current, complete, with a digest for every file, and free of hosts and paths."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from inference_server.weights.fetching.package_model import WHEELS
from tests.supply_chain.audit import normalized
from tests.supply_chain.lock import CONSTRAINTS, FOLDER, LOCKS, ROOT, TORCH, inputs_digest, pins, recorded_digest

_CONSTRAINED = pins(CONSTRAINTS.read_text())


def _text(name: str) -> str:
    return (FOLDER / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_matches_what_it_was_made_from(name):
    assert recorded_digest(_text(name)) == inputs_digest(name), "make lock writes it again"


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_digests_and_no_origin(name):
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", _text(name), flags=re.MULTILINE).strip())
    assert len(entries) == len(pins(_text(name)))
    assert all(
        re.fullmatch(r"[\w.-]+==[^\s]+( ; [^\\]+)?(\s\\\n    --hash=sha256:[0-9a-f]{64})+", each) for each in entries
    )
    assert all(len(set(digests)) == len(digests) for digests in (re.findall(r"[0-9a-f]{64}", each) for each in entries))
    assert "://" not in _text(name) and "file:" not in _text(name) and "@" not in _text(name)


@pytest.mark.parametrize("name", [name for name, lock in LOCKS.items() if lock.extras])
def test_a_lock_file_satisfies_the_requirements_of_its_extras(name):
    project, locked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"], pins(_text(name))
    extras = [project["optional-dependencies"][extra] for extra in LOCKS[name].extras]
    for requirement in map(Requirement, sum(extras, project["dependencies"])):
        if requirement.name != "torch":
            assert requirement.specifier.contains(locked[normalized(requirement.name)]), requirement


@pytest.mark.parametrize("name", [name for name in LOCKS if name != "tools"])
def test_locked_versions_are_those_of_constraints_txt(name):
    locked = pins(_text(name))
    assert {each: locked[each] for each in locked.keys() & _CONSTRAINED} == {
        each: _CONSTRAINED[each] for each in locked.keys() & _CONSTRAINED
    }


def test_the_locked_models_are_the_files_that_a_server_would_download():
    for wheel in WHEELS.values():
        assert re.search(
            rf"^{wheel.project}=={wheel.version} [^=]*(=sha256:[^=]*)*{wheel.sha256}", _text("models"), re.M
        )


def test_torch_has_the_same_version_everywhere():
    assert set(re.findall(r"torch==[\d.]+\d", (ROOT / "Makefile").read_text() + _text("torch"))) == {TORCH}
