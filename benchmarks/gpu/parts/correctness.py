"""Part 2: compares the engine's greedy replies with those of transformers.

It also compares graph replays with eager passes, and batch-invariant replies in a batch with replies alone.

With random weights the two likeliest tokens are often close, so equal texts are not required. Instead, transformers
computes the logits of the engine's own reply. The logit of a chosen token may be below the largest logit only by a
rounding error.
"""

import threading
from collections.abc import Sequence as Items
from typing import Any

import torch
from transformers import AutoConfig

from benchmarks.gpu import models
from benchmarks.gpu.checks import Check, Mismatch, Note, Setup
from benchmarks.gpu.parts import kernel_checks
from benchmarks.gpu.runners import MAX_SEQS, Sequences, make_runner, prompt
from benchmarks.gpu.subjects import Generate, Tailrace

# Largest allowed distance of a chosen token's logit from the largest logit, in standard deviations of the logits. The
# distance of a wrong token is about 4.
_TOLERANCE = {torch.float16: 0.05, torch.bfloat16: 0.25}
_LAYERS = 8
_MAX_TOKENS = 1280


def _lengths(setup: Setup) -> tuple[int, ...]:
    return (5, 30, 70) if setup.is_tiny else (5, 31, 32, 70, 300, 1025)


def _num_tokens(setup: Setup) -> int:
    return 8 if setup.is_tiny else 48


def _prompts(lengths: Items[int], vocab_size: int) -> list[list[int]]:
    return [prompt(number, length, vocab_size) for number, length in enumerate(lengths)]


def _engine_replies(
    setup: Setup, model: Any, prompts: list[list[int]], num_tokens: int, *, max_seqs: int = 8, invariant: bool = False
) -> list[list[int]]:
    """Return the engine's greedy replies to prompts that run at the same time."""
    subject = Tailrace(setup, model, max_seqs=max_seqs, max_tokens=_MAX_TOKENS, invariant=invariant)
    try:
        return [reply.token_ids for reply in subject.run(prompts, num_tokens)]
    finally:
        subject.close()


@torch.inference_mode()
def distances(model: Any, prompt_ids: list[int], reply: list[int]) -> list[float]:
    """Return the distance of each reply token's logit from the largest logit, in standard deviations of the logits.

    `model`: a model that transformers runs without Tailrace.
    """
    ids = torch.tensor([[*prompt_ids, *reply[:-1]]], device=model.device)
    logits = model(ids, use_cache=False).logits[0, len(prompt_ids) - 1 :].float()
    chosen = logits.gather(-1, torch.tensor(reply, device=model.device)[:, None])[:, 0]
    result: list[float] = ((logits.amax(dim=-1) - chosen) / logits.std(dim=-1)).tolist()
    return result


def _judge(setup: Setup, note: Note, model: Any, prompts: list[list[int]], replies: list[list[int]]) -> None:
    """Record how many tokens transformers would choose too, and raise Mismatch if a distance exceeds the tolerance."""
    found = [distances(model, *pair) for pair in zip(prompts, replies, strict=True)]
    values = [value for reply in found for value in reply]
    note("tokens", len(values))
    note("tokens_equal_to_transformers", sum(value == 0.0 for value in values))
    largest = max(values)
    note("largest_distance", round(largest, 4))
    note("tolerance", _TOLERANCE[setup.dtype])
    if not largest <= _TOLERANCE[setup.dtype]:
        worst = [max(reply) for reply in found]
        number = worst.index(max(worst))
        place = found[number].index(worst[number])
        raise Mismatch(
            f"token {place} of the reply to a prompt of {len(prompts[number])} tokens is {largest:.2f} standard deviations"
            " below transformers' choice"
        )


def _against_transformers(setup: Setup, note: Note, int8: bool) -> None:
    size = models.SHAPES[setup.shapes]["vocab_size"]
    prompts, num_tokens = _prompts(_lengths(setup), size), _num_tokens(setup)
    replies = _engine_replies(setup, models.make(setup, int8=int8, num_layers=_LAYERS), prompts, num_tokens)
    model = models.make(setup, int8=int8, attention="sdpa", num_layers=_LAYERS)
    if int8:
        # Tailrace does not quantize activations, but bitsandbytes does. So transformers computes with the dequantized
        # weights.
        stock = [distances(model, *pair) for pair in zip(prompts, replies, strict=True)]
        note("tokens_equal_to_bitsandbytes", sum(value == 0.0 for reply in stock for value in reply))
        models.dequantise(model, setup.dtype)
    _judge(setup, note, model, prompts, replies)
    texts = [Generate(setup, model).run([each], num_tokens)[0].token_ids for each in prompts]
    pairs = zip(texts, replies, strict=True)
    note("replies_equal_to_generate", f"{sum(one == other for one, other in pairs)} of {len(prompts)}")


def _half(setup: Setup, note: Note) -> None:
    """Compare the engine with transformers in 16 bits."""
    _against_transformers(setup, note, int8=False)


def _int8(setup: Setup, note: Note) -> None:
    """Compare the engine with transformers in int8."""
    _against_transformers(setup, note, int8=True)


def _replay(setup: Setup, note: Note, int8: bool) -> None:
    """Compare replays of CUDA graphs with passes computed operator by operator, at every batch size."""
    setup.need_cuda()
    model = models.make(setup, int8=int8, num_layers=2)
    size = model.config.vocab_size
    runner = make_runner(model, graphs=False, max_tokens=_MAX_TOKENS)
    sequences = Sequences(runner, [(number * 53) % 600 + 1 for number in range(MAX_SEQS)], size)

    def decoded() -> list[torch.Tensor]:
        return [runner.decode(sequences.tokens[:count]).clone() for count in range(1, MAX_SEQS + 1)]

    logits = [decoded()]
    runner.record_graphs()
    note("path", runner.path)
    logits.append(decoded())
    differences = {}
    for count, (eager, replayed) in enumerate(zip(*logits, strict=True), 1):
        differences[count] = float(((replayed - eager).abs().amax() / eager.std()).item())
    worst = max(differences, key=lambda count: differences[count])
    note("batch_sizes", len(differences))
    note("largest_difference", {"rows": worst, "standard_deviations": round(differences[worst], 5)})
    if not all(value <= _TOLERANCE[setup.dtype] for value in differences.values()):
        raise Mismatch(f"with {worst} rows a replay differs by {differences[worst]:.3f} standard deviations")


def _replay_half(setup: Setup, note: Note) -> None:
    """Compare replays with eager passes in 16 bits."""
    _replay(setup, note, int8=False)


def _replay_int8(setup: Setup, note: Note) -> None:
    """Compare replays with eager passes in int8."""
    _replay(setup, note, int8=True)


_SMALL = {
    "vocab_size": 2048,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "initializer_range": 0.08,  # larger than the default, so that attention weights are not almost equal
}
_FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 48},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {
        "tie_word_embeddings": False,
        "sliding_window": 48,
        "query_pre_attn_scalar": 64,
        "attn_logit_softcapping": 20.0,
    },
}


def _families(setup: Setup, note: Note) -> None:
    """Compare the engine with transformers' eager attention.

    The models have sliding windows, soft caps, head norms or biases.
    """
    failures = []
    for name, more in _FAMILIES.items():
        config = AutoConfig.for_model(name, **_SMALL, **more)
        prompts, num_tokens = _prompts((5, 40, 130), config.vocab_size), _num_tokens(setup)
        replies = _engine_replies(setup, models.random_model(config, setup), prompts, num_tokens)
        model = models.random_model(config, setup, "eager")
        try:
            _judge(setup, _prefixed(note, name), model, prompts, replies)
        except Mismatch as failure:
            failures.append(f"{name}: {failure}")
    if failures:
        raise Mismatch("; ".join(failures))


def _invariance(setup: Setup, note: Note) -> None:
    """Compare a batch-invariant engine's replies to prompts that run together with replies to the same prompts alone."""
    model = models.make(setup, num_layers=2)
    prompts = _prompts((5, 30, 33, 70, 200, 64, 9), model.config.vocab_size)
    subject = Tailrace(setup, model, max_seqs=8, max_tokens=_MAX_TOKENS, invariant=True)
    try:
        together = [reply.token_ids for reply in subject.run(prompts, _num_tokens(setup))]
        alone = [subject.run([each], _num_tokens(setup))[0].token_ids for each in prompts]
    finally:
        subject.close()
    equal = sum(one == other for one, other in zip(together, alone, strict=True))
    note("equal_replies", f"{equal} of {len(prompts)}")
    if equal != len(prompts):
        raise Mismatch(f"{len(prompts) - equal} replies depend on the batch")


def _two_engines(setup: Setup, note: Note) -> None:
    """Record graphs and decode with two engines at the same time, and compare each with transformers."""
    layers = (2, 3)
    made = [models.make(setup, num_layers=count) for count in layers]
    prompts = _prompts((5, 30, 70), made[0].config.vocab_size)
    replies: dict[int, list[list[int]]] = {}
    errors: list[Exception] = []

    def run(number: int) -> None:
        try:
            replies[number] = _engine_replies(setup, made[number], prompts, _num_tokens(setup))
        except Exception as error:  # raised again in the check's own thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(layers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made.clear()
    if errors:
        raise errors[0]
    for number, count in enumerate(layers):
        model = models.make(setup, attention="sdpa", num_layers=count)
        _judge(setup, _prefixed(note, f"engine {number}"), model, prompts, replies[number])


def _prefixed(note: Note, prefix: str) -> Note:
    return lambda name, figure: note(f"{prefix}: {name}", figure)


CHECKS = [
    *kernel_checks.CHECKS[:1],
    Check("16-bit and transformers", 75, _half),
    Check("int8 and transformers", 75, _int8),
    Check("replays in 16-bit", 45, _replay_half),
    Check("replays in int8", 45, _replay_int8),
    Check("windows and other families", 60, _families),
    Check("batch invariance", 40, _invariance),
    Check("two engines at once", 40, _two_engines),
    *kernel_checks.CHECKS[1:],
]
