"""The GPU's forward pass against transformers, on CPU tensors: greedy tokens, mixed passes, and counts of operators."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inference_server.attention.step_inputs import DecodeTokens, Segment
from tests.inference_server.gpu.models import GpuModel, flattened, generate, load, quantize
from tests.support.models.tiny_models import VOCAB_SIZE

NUM_TOKENS = 10
OPERATORS_PER_LAYER = 9
# Operators that launch no kernel.
VIEWS = {"view", "_unsafe_view", "slice", "select", "unsqueeze", "t", "transpose", "detach", "alias", "empty", "expand"}


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


def segments(parts: list[list[int]], *, first_block: int = 1, start: int = 0) -> list[Segment]:
    return [Segment(range(first_block + 6 * n, first_block + 6 * n + 6), start, len(p)) for n, p in enumerate(parts)]


class Operators(TorchDispatchMode):
    """Counts the operators that would launch a kernel on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def counted(run) -> Counter[str]:
    with torch.no_grad(), Operators() as operators:
        run()
    return operators.counts


@pytest.mark.parametrize("is_int8", [False, True], ids=["16-bit", "int8"])
@pytest.mark.parametrize("architecture", ["llama-2", "llama-3", "mistral", "qwen-2", "qwen-3"])
def test_greedy_tokens_equal_those_of_generate(architecture, is_int8, tiny_model):
    model = load(tiny_model(architecture))
    reference = load(tiny_model(architecture))
    if is_int8:
        quantize(model, dequantized=False)
        quantize(reference, dequantized=True)
    parts = prompts(1, 23, 24, 70)
    replies = GpuModel(model).greedy(parts, NUM_TOKENS)
    for reply, prompt in zip(replies, parts, strict=True):
        assert reply == generate(reference, prompt, NUM_TOKENS)


@pytest.mark.parametrize("architecture", ["mistral", "qwen-3"])
def test_a_prompt_computed_in_two_parts_has_the_same_logits(architecture, tiny_model):
    model = GpuModel(load(tiny_model(architecture)))
    (prompt,) = prompts(60)
    whole = model.prefill(segments([prompt]), [prompt])
    model.prefill(segments([prompt[:40]], first_block=7), [prompt[:40]])
    rest = model.prefill(segments([prompt[40:]], first_block=7, start=40), [prompt[40:]])
    torch.testing.assert_close(rest, whole)


@pytest.mark.parametrize("is_int8", [False, True], ids=["16-bit", "int8"])
def test_a_mixed_pass_has_the_logits_of_two_passes(is_int8, tiny_model):
    loaded = load(tiny_model("qwen-3"))
    if is_int8:
        quantize(loaded, dequantized=False)
    model = GpuModel(loaded)
    old, new = prompts(5, 40), prompts(33, 3)
    model.prefill(segments(old), old)
    tokens = DecodeTokens([7, 9], [5, 40], [range(1, 7), range(7, 13)])
    apart = torch.cat(
        [
            model.decode(tokens.token_ids, tokens.positions, tokens.block_ids),
            model.prefill(segments(new, first_block=13), new),
        ]
    )
    torch.testing.assert_close(model.mixed(tokens, segments(new, first_block=25), new), apart)


def test_a_pass_of_which_no_logits_are_needed_returns_none(tiny_model):
    model = GpuModel(load(tiny_model("llama-2")))
    parts = prompts(5)
    batch, _ = flattened(segments(parts), parts)
    assert model.forward.prefill(batch, []).shape == (0, VOCAB_SIZE)


@pytest.mark.parametrize("is_int8", [False, True], ids=["16-bit", "int8"])
def test_a_decode_pass_has_nine_operators_for_each_layer(is_int8, tiny_model):
    counts = []
    for num_layers in (1, 2):
        loaded = load(tiny_model("qwen-3"))
        if is_int8:
            quantize(loaded, dequantized=False)
        model = GpuModel(loaded, num_layers=num_layers)
        model.prefill(segments(prompts(5)), prompts(5))
        counts.append(counted(lambda model=model: model.forward.decode(model.inputs.rows(4))))
    assert counts[1] - counts[0] == {
        "add_rms_norm": 2,
        "int8_linear" if is_int8 else "mm": 4,
        "rope_and_write": 1,
        "paged_decode_attention": 1,
        "silu_mul": 1,
    }
    assert counts[0].total() <= OPERATORS_PER_LAYER + 14


def test_the_operators_of_a_prefill_pass_do_not_depend_on_the_number_of_prompts(tiny_model):
    loaded = load(tiny_model("llama-2"))
    num_layers = loaded.config.num_hidden_layers
    model = GpuModel(loaded)
    found = []
    for lengths in ([5], [5, 40, 33, 3, 9]):
        parts = prompts(*lengths)
        model.prefill(segments(parts), parts)
        found.append(counted(lambda parts=parts: model.prefill(segments(parts), parts)))
    assert found[0] == found[1]
    assert found[0]["paged_prefill_attention"] == num_layers
