"""The catalog's keys of speculative decoding."""

import pytest
import torch

from inference_server.serving.catalog import read_catalog
from inference_server.serving.engine_groups import group_entries
from inference_server.weights.source import Weights
from tests.inference_server.serving.test_catalog import ENTRY, catalog, complaint


def test_entries_with_other_drafts_have_other_engines(tmp_path):
    lines = ("", 'speculation = "off"', 'draft = { hub = "owner/small" }')
    text = "".join(ENTRY.replace("tiny", f"tiny-{number}") + line for number, line in enumerate(lines))
    entries = read_catalog(catalog(tmp_path, text))
    assert [entry.speculation for entry in entries] == [None, "off", None]
    assert entries[2].draft == Weights(hub="owner/small")
    assert len(group_entries(entries, torch.device("cpu"))) == 3


@pytest.mark.parametrize("line", ['speculation = "off"', 'draft = { hub = "owner/small" }'])
def test_keys_of_the_own_engine_are_refused_for_vllm(tmp_path, line):
    sentence = (
        f'{line.split()[0]} is for a model with engine = "tailrace"; vLLM has speculative_config in [models.vllm]'
    )
    assert sentence in complaint(catalog(tmp_path, ENTRY + 'engine = "vllm"\n' + line))
