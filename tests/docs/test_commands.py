"""Every command in README.md and docs/getting-started.md is executed by a test."""

import re

import pytest

from tests.docs.blocks import ELSEWHERE, covered_by, inline_commands, lines, programs, script
from tests.support.processes import ROOT


def test_the_tests_of_other_folders_exist():
    for test in ELSEWHERE.values():
        assert (ROOT / test).is_file(), test


def test_every_entry_is_needed():
    commands = [line.replace("\\\n", " ") for block in programs() if block.language == "sh" for line in lines(block)]
    commands += [command for _, command in inline_commands()]
    unused = [pattern for pattern in ELSEWHERE if not any(re.match(pattern, command) for command in commands)]
    assert not unused


@pytest.mark.parametrize("block", list(programs()), ids=str)
def test_a_block_is_executed_or_covered(block):
    covered = block.language == "sh" and all(map(covered_by, lines(block)))
    # tests/e2e/test_documentation.py executes the rest, and it can execute these languages only.
    assert covered or (script(block) and block.language in ("sh", "python"))


@pytest.mark.parametrize(("page", "command"), list(inline_commands()))
def test_a_command_in_a_sentence_is_covered(page, command):
    inside_of_a_block = any(command in block.text for block in programs() if script(block))
    assert covered_by(command) or inside_of_a_block, f"{page}: `{command}`"
