"""The generated sections of README.md and docs/ are those of the code. `make docs-generate` writes them."""

import re

import pytest

from tests.docs import errors, generate
from tests.support.processes import ROOT


@pytest.mark.parametrize("name", generate.SECTIONS)
def test_a_generated_section_is_up_to_date(name):
    assert generate.section(name) == generate.SECTIONS[name][1](), "run make docs-generate"


def test_the_contract_lists_the_reasons_of_the_server():
    assert {reason for reason, _, _ in errors.contract()} == errors.reasons()


def test_every_setting_in_the_documents_exists():
    known = set(re.findall(r"`TAILRACE_(\w+)`", generate.section("settings")))
    # Read by the command, the client, the npm package and the compose files alone.
    known |= {"URL", "TOKEN", "ACCOUNT", "HTTP_PORT", "GRPC_PORT", "COMMAND", "PYTHON_PACKAGE", "START_SECONDS"}
    known |= {"WRANGLER_CONFIG", "CHAT_HISTORY"}
    for path in [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]:
        for name in re.findall(r"\bTAILRACE_(\w+)\b", path.read_text()):
            # The misspelt example of the pages about unknown variables.
            assert name in known or name == "API_TOKEN" or name.endswith("_"), f"{path.name}: TAILRACE_{name}"
