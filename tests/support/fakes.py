"""Objects for tests without an engine: sequences, hosted models, and real tokenizers."""

from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

from transformers import AutoTokenizer

from inference_server.engine.sequence import Sequence
from inference_server.generation import GenerationRequest, SamplingParams
from inference_server.serving.catalog import CatalogEntry, builtin_template, read_catalog
from inference_server.serving.hosted_model import HostedModel
from inference_server.settings.models import DEFAULT_CATALOG
from inference_server.settings.server import Settings
from inference_server.text.detokenizer import Detokenizer, ReplyText
from inference_server.text.grammar import Grammars
from inference_server.text.prompt_encoder import PromptEncoder
from inference_server.weights.download import local_folder
from inference_server.weights.source import Weights
from tests.support.models.tiny_models import VOCAB_SIZE, sentencepiece_tokenizer


@cache
def default_tokenizer() -> Any:
    """Return the default model's tokenizer, a byte-level BPE.

    Converts the model's weights if no server has done it yet, but does not load them.
    """
    weights = read_catalog(DEFAULT_CATALOG)[0].weights
    return AutoTokenizer.from_pretrained(local_folder(weights, Settings.from_environment().cache_dir))


@cache
def llama_tokenizer() -> Any:
    """Return a tiny tokenizer of Llama 2's kind. All tests share it, so do not change it."""
    return sentencepiece_tokenizer()


@cache
def default_prompts() -> PromptEncoder:
    return PromptEncoder(default_tokenizer())


@cache
def llama_prompts() -> PromptEncoder:
    return PromptEncoder(llama_tokenizer(), chat_template=builtin_template("llama-2"))


def sequence(
    num_prompt_tokens: int = 1,
    *,
    name: str = "",
    account: str = "",
    start: int = 0,
    prompt_ids: list[int] | None = None,
    is_batch: bool = False,
) -> Sequence:
    """Return a sequence as the engine's thread gets it. Without `prompt_ids`, its prompt is start, start + 1, …"""
    request = GenerationRequest(
        request_id=name,
        account=account,
        prompt_ids=prompt_ids or range(start, start + num_prompt_tokens),
        sampling=SamplingParams(seed=1),
        max_tokens=100,
        is_batch=is_batch,
    )
    return Sequence(request=request, text=ReplyText(Detokenizer(str), ()), reply=None, arrived=0.0)


def hosted_model(
    *,
    context_length: int = 2048,
    sequence_length: int = 1800,
    window: int = 3848,
    sampling: Mapping[str, float] | None = None,
) -> HostedModel:
    """Return a hosted model with these limits in tokens and without an engine."""
    entry = CatalogEntry(
        name="tiny",
        description="",
        weights=Weights(hub="none/such"),
        precision="float32",
        context_length=context_length,
        sequence_length=sequence_length,
        chat_template=None,
        stands_in=False,
    )
    engine = SimpleNamespace(vocab_size=VOCAB_SIZE)
    grammars = Grammars(llama_tokenizer(), VOCAB_SIZE)
    return HostedModel(entry, "float32", window, llama_prompts(), engine, grammars, "hermes", sampling=sampling or {})
