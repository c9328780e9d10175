"""The catalogue of Workers AI's models (tailrace_shared/catalogue/workers-ai.toml)."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from inference_server.serving.known_models import KnownModelTable, known_models
from tailrace_shared.catalogue import workers_ai

VALID = {"name": "@cf/a/b", "description": "A model", "hub": "owner/name"}


def test_every_table_has_only_valid_keys():
    assert list(known_models()) == list(workers_ai.tables())
    assert len(known_models()) > 70


def test_no_name_occurs_twice():
    text = workers_ai.CATALOGUE.read_text()
    assert text.count("[[models]]") == len(workers_ai.tables())


@pytest.mark.parametrize(
    "changes",
    [
        {"licence": ""},
        {"colour": "blue"},
        {"name": "llama"},
        {"runs_on": "vllm"},
        {"obstacle": "it is large"},
        {"removed": "yesterday"},
        {"features": ["telepathy"]},
        {"sampling": {"top_p": 3.0}},
        {"hub": "no-owner"},
    ],
)
def test_a_wrong_key_is_refused(changes):
    KnownModelTable.model_validate(VALID)
    with pytest.raises(ValidationError):
        KnownModelTable.model_validate(VALID | changes)


def test_a_gated_model_has_the_page_to_accept():
    model = known_models()["@cf/meta/llama-3.2-1b-instruct"]
    assert model.gate == "https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct"
    assert known_models()["@cf/qwen/qwq-32b"].gate is None


def test_removed_models_have_the_days_of_the_announcements():
    days = [table["removed"] for table in workers_ai.tables().values() if "removed" in table]
    assert (days.count("2025-10-01"), days.count("2026-05-30"), len(days)) == (19, 17, 36)
    assert known_models()["@cf/meta/llama-2-7b-chat-int8"].is_removed


def test_the_catalogue_is_read_without_torch():
    code = "import sys; from inference_server.serving import known_models as k; k.known_models(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
