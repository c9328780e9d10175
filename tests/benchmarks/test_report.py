"""The report of results: the page's sections and the README's table, one part for each class of CPUs."""

import json
import shutil

import pytest

from benchmarks.processes import ROOT
from benchmarks.report import kernel_tables, readme, report
from benchmarks.report.classes import all_classes

AMX = ROOT / "benchmarks" / "results" / "intel-amx" / "2026-11-23-full.json"


@pytest.fixture
def results(tmp_path):
    """A folder with results of two CPUs, and of one of them limited to AVX2."""
    shutil.copytree(AMX.parent, tmp_path / "intel-amx")
    document = json.loads(AMX.read_text())
    document["machine"] |= {"cpu": "AMD EPYC", "instructions": ["avx2", "avx512f"]}
    for name, limit in (("amd-zen4-as-avx2", "avx2"), ("amd-zen4-avx512", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "2026-12-01-full.json").write_text(json.dumps(document | {"limit": limit}))
    return tmp_path


def test_the_report_writes_a_section_for_each_cpu_class_between_the_marks(results, tmp_path, monkeypatch):
    page, charts = tmp_path / "docs" / "benchmarks.md", tmp_path / "docs" / "images"
    charts.mkdir(parents=True)
    page.write_text(f"# Benchmarks\n{report.BEGIN}\nold figures\n{report.END}\nThe end.\n")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "CHARTS", charts)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    shutil.rmtree(tmp_path / "docs" / "images")
    charts.mkdir()
    monkeypatch.setattr(report, "all_classes", lambda: all_classes(results))
    report.write()
    text = page.read_text()
    headings = [line for line in text.splitlines() if line.startswith("### ")]
    assert headings == ["### Intel(R) Xeon(R) Processor, AMX", "### AMD EPYC, AVX-512", "### AMD EPYC, avx2 only"]
    assert text.startswith(f"# Benchmarks\n{report.BEGIN}\n### ") and text.endswith(f"{report.END}\nThe end.\n")
    assert "old figures" not in text
    assert "](images/throughput-amd-zen4-avx512.svg)" in text
    assert (charts / "throughput-intel-amx.svg").read_text().startswith("<svg ")


def test_the_readme_shows_the_classes_side_by_side_without_those_of_a_limit(results):
    heading, _, first, *_ = readme.table(all_classes(results)).splitlines()
    assert heading.count("1 stream") == 2 and "AMX: 1 stream" in heading and "AVX-512: 1 stream" in heading
    assert first == "| **Tailrace** | int4 | 130 | 356 | 633 | 42 | 130 | 356 | 633 | 42 |"


def test_the_table_of_kernels_shows_the_share_of_the_bandwidth():
    row = {"model": "m", "format": "int4", "subject": "tailrace", "features": "avx2", "threads": 1, "rows": 1}
    document = {
        "started": "2026-12-01T00:00:00",
        "machine": {"cpu": "AMD EPYC"},
        "bandwidth_gb_per_s": {"1": 30.0},
        "models": {"m": "A model"},
        "rows": [1, 8],
        "results": [row | {"ms": 4.2, "gb_per_s": 24.0, "backend": "x86"}],
    }
    assert "| int4, **Tailrace** (x86) | avx2 | 1 | 4.20 | – | 24.0 | 80% |" in kernel_tables.tables(document)
