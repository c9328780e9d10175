"""The report of results that are in the repository."""

import json

from benchmarks.processes import ROOT
from benchmarks.report import report

RESULTS = ROOT / "benchmarks" / "results" / "2026-11-23-full.json"


def test_the_report_replaces_the_section_between_the_marks(tmp_path, monkeypatch):
    page, chart = tmp_path / "docs" / "benchmarks.md", tmp_path / "docs" / "throughput.svg"
    page.parent.mkdir()
    page.write_text(f"# Benchmarks\n{report.BEGIN}\nold figures\n{report.END}\nThe end.\n")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "CHART", chart)
    report.write(json.loads(RESULTS.read_text()), RESULTS)
    text = page.read_text()
    assert text.startswith(f"# Benchmarks\n{report.BEGIN}\nMeasured on ")
    assert text.endswith(f"{report.END}\nThe end.\n")
    assert "old figures" not in text
    assert "](throughput.svg)" in text and "`benchmarks/results/2026-11-23-full.json`" in text
    assert chart.read_text().startswith("<svg ")
