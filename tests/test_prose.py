"""Docstrings, comments, messages and documents keep to the house rules of CONTRIBUTING.md."""

from pathlib import Path

import pytest

from tests import prose


@pytest.mark.parametrize(
    ("name", "text", "rules"),
    [
        ("tests/a.py", '"""Holds\nthe rules."""\n# Read it\n# anew.\n', ["banned"]),
        ("tests/a.py", '"""Holds the rules."""\nraise ValueError(f"{x} tells")\n', ["banned"]),
        ("tests/a.py", '"""Holds `anew`."""\nanew = "anew"\n', []),
        ("tests/a.py", '"""Of rules."""\n', ["first word"]),
        ("tests/a.py", f'"""{"Reads " * 36}."""\n', ["long"]),
        ("tests/a.py", f'"""{"Reads " * 20}.\n\n    {"Reads " * 20}."""\n', []),
        (
            "http_bridge/a.py",
            "def f(): ...\nclass A:\n    '''Nothing.'''\n    def g(self): ...\n",
            ["undocumented"] * 2,
        ),
        (
            "http_bridge/a.py",
            "class A:\n    '''A.'''\n    def f(self): '''F.'''\nclass _B(A):\n    def f(self): ...\n",
            [],
        ),
        ("http_bridge/_a.py", "def f(): ...\n", []),
        ("a.md", f"# {'title ' * 31}\n\n|{'cell ' * 31}|\n\n```\n{'code ' * 31}\n```\n", []),
        ("a.md", f"- {'word ' * 20}\n- {'word ' * 20}\n", []),
        ("a.md", f"{'word ' * 31}", ["long"]),
        ("a.proto", "// It is\n// told.\n", ["banned"]),
    ],
)
def test_each_rule_finds_its_violations(tmp_path: Path, name: str, text: str, rules: list[str]) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert [violation.rule for violation in prose.violations(tmp_path)] == rules


@pytest.fixture(scope="module")
def found() -> list[prose.Violation]:
    return list(prose.violations())


@pytest.mark.parametrize("rule", ["banned", "first word", "long", "undocumented"])
def test_house_rules_hold(found: list[prose.Violation], rule: str) -> None:
    broken = ["{}:{}: {}: {}".format(*violation) for violation in found if violation.rule == rule]
    assert not broken, "\n".join(broken)
