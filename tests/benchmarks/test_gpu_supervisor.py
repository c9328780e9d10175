"""The GPU check's parts run in processes with time limits. Scripts without torch replace the parts here."""

import json
import sys

import pytest

from benchmarks.gpu import supervisor
from benchmarks.gpu.supervisor import PARTS, Part, Supervisor, limits

# A part with three checks. What the check "b" does comes from the command line.
_SCRIPT = """
import json, os, sys, time
part, path = sys.argv[1], sys.argv[3]
state = json.load(open(path)) if os.path.exists(path) else {"complete": False, "checks": {}}
def write():
    with open(path + ".new", "w") as file:
        json.dump(state, file)
    os.replace(path + ".new", path)
for name in "abc":
    if name in state["checks"]:
        continue
    state["checks"][name] = {"status": "running", "since": time.time(), "limit": 0.5, "figures": {}}
    write()
    if name == "b" and part == "bad":
        exec(sys.argv[-1])
    state["checks"][name] = {"status": "ok", "figures": {name: 1}}
    write()
state["complete"] = True
write()
"""


def run(tmp_path, parts, action="pass", script=_SCRIPT, seconds=20.0):
    path = tmp_path / "part.py"
    path.write_text(script)
    runner = Supervisor(tmp_path / "out", [action], command=[sys.executable, str(path)])
    results = runner.run([Part(name, 1.0) for name in parts], seconds)
    assert json.loads((tmp_path / "out" / "gpu.json").read_text()) == results
    return results["parts"]


def statuses(part):
    return {name: check["status"] for name, check in part["checks"].items()}


def test_the_most_telling_parts_are_first_and_their_shares_are_all_of_the_time():
    assert [part.name for part in PARTS] == ["probe", "correctness", "micro", "benchmark", "profile"]
    assert sum(part.share for part in PARTS) == pytest.approx(1.0)


def test_time_that_a_part_does_not_use_goes_to_the_later_parts():
    parts = [Part("a", 0.5), Part("b", 0.25), Part("c", 0.25)]
    assert limits(parts, 0, 100.0) == pytest.approx(50.0)
    assert limits(parts, 1, 90.0) == pytest.approx(45.0)
    assert limits(parts, 2, 45.0) == pytest.approx(45.0)


def test_parts_run_in_order_in_one_process_each(tmp_path):
    parts = run(tmp_path, ["good", "better"])
    assert list(parts) == ["good", "better"]
    assert all(part["complete"] and part["processes"] == 1 and "failed" not in part for part in parts.values())


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("sys.exit(1)", "its process ended with code 1"),
        ("os.kill(os.getpid(), 11)", "its process ended by signal SIGSEGV"),
        ("time.sleep(60)", "it took longer than 0 s"),
    ],
)
def test_a_check_that_ends_its_process_or_hangs_loses_no_other_check(tmp_path, action, reason):
    parts = run(tmp_path, ["bad", "good"], f"print('the cause', file=sys.stderr, flush=True); {action}")
    assert statuses(parts["bad"]) == {"a": "ok", "b": "failed", "c": "ok"}
    assert parts["bad"]["checks"]["b"] == {
        "status": "failed",
        "figures": {},
        "reason": reason,
        "output": ["the cause"],
    }
    assert parts["bad"]["processes"] == 2
    assert statuses(parts["good"]) == {"a": "ok", "b": "ok", "c": "ok"}


def test_a_part_that_cannot_start_fails_with_the_reason(tmp_path):
    parts = run(tmp_path, ["good"], script="import no_such_module")
    assert parts["good"]["failed"] == "its process ended with code 1"
    assert "no_such_module" in (tmp_path / "out" / "gpu.log").read_text()


def test_no_part_runs_longer_than_the_time_that_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "_LEAST_SECONDS", 0.3)
    slow = _SCRIPT.replace('"limit": 0.5', '"limit": 60')
    parts = run(tmp_path, ["bad"], "time.sleep(60)", script=slow, seconds=1.5)
    assert statuses(parts["bad"]) == {"a": "ok", "b": "failed"}
    assert parts["bad"]["failed"] == "the time of this part was over"
