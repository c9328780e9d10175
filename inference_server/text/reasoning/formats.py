"""Formats of thoughts: the markers around the text that a reasoning model writes before its reply.

Works on text only. Does not depend on a tokenizer or gRPC.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FormatName = Literal["think", "mistral", "seed", "kimi", "minimax", "cohere", "gemma", "harmony"]
# Thoughts at the beginning of a reply. "none": the text is not searched for thoughts. "possible": the reply may begin
# with thoughts. "open": the prompt has begun them. "continued": the prompt ends within thoughts that the client sent.
# "off": no thoughts should follow, but a model may write them nevertheless.
ThoughtState = Literal["none", "possible", "open", "continued", "off"]


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Markers around the thoughts.

    Attributes:
        start: The text that begins the thoughts.
        end: The text that ends the thoughts; the reply follows.
        has_channels: True for harmony, whose replies are several messages.
    """

    start: str
    end: str
    has_channels: bool = False

    @property
    def visible_tokens(self) -> frozenset[str]:
        """The control tokens that decoding must keep as text, so that the markers can be found."""
        if self.has_channels:
            return HARMONY_TOKENS
        return frozenset((self.start, self.end, "<|channel>"))


HARMONY_TOKENS = frozenset(("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>"))

FORMATS: Mapping[FormatName, ReasoningFormat] = {
    # Qwen3, DeepSeek R1 and V3.1, GLM, Kimi K2, SmolLM3, Nemotron and others.
    "think": ReasoningFormat("<think>", "</think>"),
    # Magistral and later models of Mistral.
    "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
    # In this order: Seed-OSS, Kimi-VL, MiniMax-M3, Command A Reasoning, Gemma 4.
    "seed": ReasoningFormat("<seed:think>", "</seed:think>"),
    "kimi": ReasoningFormat("◁think▷", "◁/think▷"),
    "minimax": ReasoningFormat("<mm:think>", "</mm:think>"),
    "cohere": ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>"),
    "gemma": ReasoningFormat("<|channel>thought", "<channel|>"),
    # gpt-oss: replies are messages with channels, and the answer is the one of the channel `final`.
    "harmony": ReasoningFormat("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", has_channels=True),
}

# Texts by which a chat template's format is recognised. The first match counts: a template may mention <think> only to
# remove it.
_SIGNS: tuple[tuple[str, FormatName], ...] = (
    ("<|channel|>", "harmony"),
    ("<|channel>", "gemma"),
    ("[THINK]", "mistral"),
    ("<seed:think>", "seed"),
    ("◁think▷", "kimi"),
    ("<mm:think>", "minimax"),
    ("<|START_THINKING|>", "cohere"),
    ("<think>", "think"),
)


def detect_reasoning_format(template: object) -> ReasoningFormat | None:
    """Return the format of thoughts that a chat template contains, or None if it contains none.

    `template`: Jinja text, a dictionary of several templates by name, or None.
    """
    text = str(template)
    return next((FORMATS[name] for sign, name in _SIGNS if sign in text), None)
