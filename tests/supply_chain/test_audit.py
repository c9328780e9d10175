"""The audit with advisories in the two stored formats."""

import json
import zipfile

import pytest

from tests.supply_chain.audit import findings, is_affected, main, read_advisories


def _advisory(name, **affected):
    package = {"name": name, "ecosystem": "PyPI"}
    return {"id": "PYSEC-2026-1", "details": "A flaw.", "affected": [{"package": package, **affected}]}


def _range(*events):
    return {"ranges": [{"type": "ECOSYSTEM", "events": [dict([event]) for event in events]}]}


@pytest.mark.parametrize(
    ("version", "affected", "expected"),
    [
        ("1.0", {"versions": ["0.9", "1.0.0"]}, True),
        ("1.1", {"versions": ["0.9", "1.0"]}, False),
        ("1.1", _range(("introduced", "0"), ("fixed", "1.2")), True),
        ("1.2", _range(("introduced", "0"), ("fixed", "1.2")), False),
        ("2.5", _range(("introduced", "0"), ("fixed", "1.2"), ("introduced", "2.0"), ("fixed", "2.6")), True),
        ("1.5", _range(("introduced", "2.0"), ("introduced", "0"), ("fixed", "1.2")), False),
        ("1.2", _range(("introduced", "1.0"), ("last_affected", "1.2")), True),
        ("1.3", _range(("introduced", "1.0"), ("last_affected", "1.2")), False),
        ("1.3", {"ranges": [{"type": "GIT", "events": [{"introduced": "0"}]}]}, False),
        ("1.3", {"versions": ["2004b"]}, False),
    ],
)
def test_a_version_is_affected_if_it_is_listed_or_in_a_range(version, affected, expected):
    assert is_affected(version, affected) is expected


def test_names_are_compared_as_pypi_compares_them():
    advisory = _advisory("Typing_Extensions", versions=["4.16.0"])
    assert [name for name, *_ in findings({"typing-extensions": "4.16.0"}, iter([advisory]))] == ["typing-extensions"]


def test_a_withdrawn_advisory_is_no_finding():
    advisory = _advisory("requests", versions=["2.34.2"]) | {"withdrawn": "2026-01-01T00:00:00Z"}
    assert not list(findings({"requests": "2.34.2"}, iter([advisory])))


def test_the_audit_reads_a_folder_and_a_zip_file(tmp_path, capsys):
    advisory = _advisory("h11", versions=["0.16.0"])
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "PYSEC-2026-1.yaml").write_text(json.dumps(advisory))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("PYSEC-2026-1.json", json.dumps(advisory))
    for path in (tmp_path / "list", tmp_path / "all.zip"):
        assert len(list(read_advisories(path))) == 1
        assert main([str(path), "bridge"]) == 1
        assert "h11 0.16.0: PYSEC-2026-1" in capsys.readouterr().out


def test_without_a_list_the_audit_says_how_to_store_one(tmp_path, capsys):
    assert main([str(tmp_path / "missing")]) == 2
    assert "git clone" in capsys.readouterr().err
