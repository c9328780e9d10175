"""Formats of thoughts: the markers around the text that a reasoning model writes before its reply.

    think     <think>…</think>: Qwen3, DeepSeek R1 and V3.1, GLM, Kimi K2, SmolLM3, Nemotron and others
    mistral   [THINK]…[/THINK]: Magistral and later models of Mistral
    seed      <seed:think>…</seed:think>: Seed-OSS
    kimi      ◁think▷…◁/think▷: Kimi-VL
    minimax   <mm:think>…</mm:think>: MiniMax-M3
    cohere    <|START_THINKING|>…<|END_THINKING|>: Command A Reasoning
    gemma     <|channel>thought…<channel|>: Gemma 4
    harmony   messages with channels, <|channel|>analysis<|message|>…<|end|>: gpt-oss

Works on text only. Does not depend on a tokenizer or gRPC.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FormatName = Literal["think", "mistral", "seed", "kimi", "minimax", "cohere", "gemma", "harmony"]


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Markers around the thoughts.

    Attributes:
        start: The text that begins the thoughts.
        end: The text that ends them; the reply follows.
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
    "think": ReasoningFormat("<think>", "</think>"),
    "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
    "seed": ReasoningFormat("<seed:think>", "</seed:think>"),
    "kimi": ReasoningFormat("◁think▷", "◁/think▷"),
    "minimax": ReasoningFormat("<mm:think>", "</mm:think>"),
    "cohere": ReasoningFormat("<|START_THINKING|>", "<|END_THINKING|>"),
    "gemma": ReasoningFormat("<|channel>thought", "<channel|>"),
    # The answer begins with the message of the channel `final`.
    "harmony": ReasoningFormat("<|channel|>analysis<|message|>", "<|channel|>final<|message|>", has_channels=True),
}

# Text of a chat template that shows its format. The first match counts: a template may mention <think> only to remove it.
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
