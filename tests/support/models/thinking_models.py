"""Reasoning models for tests: vendors' chat templates, and a tiny model whose replies follow a script."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from inference_server.engine.native import build as native
from inference_server.engine.native.engine import Engine
from inference_server.engine.native.sampler import Sample
from inference_server.engine.native.step_rows import Logits, sample_tokens
from inference_server.engine.spec import EngineSpec
from inference_server.serving.catalog import CatalogEntry
from inference_server.serving.hosted_model import HostedModel
from inference_server.weights.prepare import PreparedModel
from tests.support.engines import hosting
from tests.support.models.tiny_models import ARCHITECTURES, VOCAB_SIZE, sentencepiece_tokenizer

_TEMPLATES = Path(__file__).parent / "chat_templates"
# Tokens as in Qwen3's vocabulary: <think> and <tool_call> are no control tokens there.
_PLAIN_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
_CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "[THINK]", "[/THINK]")
_PUSH = 1e4  # added to the logit of the script's next token, so that it is chosen unless a grammar forbids it


@cache
def chat_template(name: str) -> str:
    """Return the text of a template in chat_templates/."""
    return (_TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def thinking_tokenizer(*, has_marker_tokens: bool = True) -> PreTrainedTokenizerFast:
    """Return the tiny SentencePiece tokenizer with ChatML's control tokens, and the markers as tokens or spelled."""
    tokenizer = sentencepiece_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(_CONTROL_TOKENS[: 4 if has_marker_tokens else 2])})
    if has_marker_tokens:
        tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _PLAIN_TOKENS])
    return tokenizer


def write_thinking_model(folder: Path, template: str, *, has_marker_tokens: bool = True) -> Path:
    """Write a random tiny Qwen3 with the tokenizer above and a template of chat_templates/. Returns `folder`."""
    torch.manual_seed(0)
    num_tokens = VOCAB_SIZE + len(_PLAIN_TOKENS) + len(_CONTROL_TOKENS)
    config = ARCHITECTURES["qwen-3"].to_dict() | {"vocab_size": num_tokens}
    AutoModelForCausalLM.from_config(Qwen3Config(**config)).save_pretrained(folder)
    tokenizer = thinking_tokenizer(has_marker_tokens=has_marker_tokens)
    tokenizer.chat_template = chat_template(template)
    tokenizer.save_pretrained(folder)
    return folder


class Script:
    """Builder of native engines whose replies follow `text`, as far as grammars allow; then the model's own choice.

    `end_after`: True if the model's end token follows the script.
    """

    def __init__(self) -> None:
        self.text, self.end_after = "", True
        self.load = native.load

    async def build(self, spec: EngineSpec[PreparedModel]) -> Engine:
        return await native.build(spec, partial(self._sample, spec.model.tokenizer))

    def _sample(self, tokenizer: PreTrainedTokenizerFast, logits: Logits) -> list[Sample]:
        script = tokenizer(self.text, add_special_tokens=False)["input_ids"] if self.text else []
        script += [tokenizer.eos_token_id] * self.end_after
        for row, seq in enumerate(logits.seqs):
            if seq.request.request_id != "warm-up" and seq.num_completion_tokens < len(script):
                logits.rows[row, script[seq.num_completion_tokens]] += _PUSH
        return sample_tokens(logits)


@asynccontextmanager
async def hosting_script(*entries: CatalogEntry) -> AsyncIterator[tuple[Script, dict[str, HostedModel]]]:
    """Host models whose replies follow a script."""
    script = Script()
    async with hosting(*entries, builder=script, max_running_seqs=2) as models:
        yield script, models
