"""Greedy replies of the default model equal those of transformers' `generate`, in every precision and batch.

Where rounding differs (16 bits, int8), the first differing token must have been nearly as likely. transformers alone and
batched differ from each other by as much.
"""

import pytest
import torch

from inference_server.precision import resolve_precision
from tests.exact.reference import LARGEST_GAP, MODES, PROMPT_LENGTHS, default_entry, first_gap, prompts
from tests.support.engines import hosting

SIXTEEN_BIT = resolve_precision("float16", torch.device("cpu"))
PRECISIONS = sorted({"float32", SIXTEEN_BIT, "bitsandbytes-int8"})


@pytest.mark.exact
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("precision", PRECISIONS)
async def test_greedy_tokens_are_those_of_generate(precision, mode, references, report):
    async with hosting(default_entry(precision), max_running_seqs=32) as models:
        model = models["default"]
        texts = prompts(model.prompts, PROMPT_LENGTHS)
        ours = await MODES[mode](model, texts)
    gaps = [first_gap(theirs, tokens) for theirs, tokens in zip(references(precision, texts), ours, strict=True)]
    differing = [gap for gap in gaps if gap is not None]
    report(
        f"{precision:>17} {mode:>15}: {len(gaps) - len(differing)} of {len(gaps)} prompts equal in all tokens; "
        f"largest gap at a first difference {max(differing, default=0.0):.4f} logits"
    )
    if precision == "float32":
        assert not differing
    assert max(differing, default=0.0) <= LARGEST_GAP[precision]
