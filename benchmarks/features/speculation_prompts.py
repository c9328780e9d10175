"""Makes the prompts of the benchmark of speculative decoding.

Code edits, extractions and summaries are made from files of this repository. Chat questions are constants. Code edits
and extractions ask for text that the prompt contains, so replies repeat parts of the prompt.
"""

import re

from benchmarks.processes import ROOT

_ENGINE = "inference_server/engine"
# Pairs of a Python module and the change that a prompt requests.
_EDITS = (
    (f"{_ENGINE}/rate_limit.py", "Rename the class RateLimit to Limiter"),
    (f"{_ENGINE}/histogram.py", "Rename the class Histogram to Counts"),
    (f"{_ENGINE}/daemon_thread.py", "Add a type hint to each function"),
    (f"{_ENGINE}/fair_queue.py", "Rename the class to AccountQueue"),
    (f"{_ENGINE}/prefix_keys.py", "Rename the class BlockKeys to Keys"),
    ("tests/inference_server/engine/native/stepping.py", "Rename the class Run to EngineRun"),
)
# Texts to extract from and to summarise.
_TEXTS = (
    "docs/batches.md",
    "docs/gpu.md",
    "docs/scaling.md",
    "docs/reasoning.md",
    "docs/docker.md",
    "docs/embeddings.md",
)
_CHAT = (
    "What is the capital of Japan, and what is it known for?",
    "Explain photosynthesis to a child.",
    "Write a short story about a lighthouse keeper.",
    "Give me five tips for learning a new language.",
    "What is the difference between a process and a thread?",
    "Write a polite email that asks for a day off.",
    "Why is the sky blue?",
    "How do I make tomato soup?",
)
_MAX_CHARACTERS = 2400


def code_edits() -> list[str]:
    """Return prompts that contain the beginning of a Python module and ask for it with a small change."""
    return [f"{task}. Return the whole module.\n\n```python\n{_beginning(path)}\n```\n" for path, task in _EDITS]


def extractions() -> list[str]:
    """Return prompts that ask for sentences of a text."""
    return [f"Copy the important sentences of this text word for word.\n\n{_prose(path)}\n" for path in _TEXTS]


def summaries() -> list[str]:
    """Return prompts that ask for a summary of a text."""
    return [f"Summarise this text in a few sentences.\n\n{_prose(path)}\n" for path in _TEXTS]


def chat() -> list[str]:
    """Return ordinary questions."""
    return list(_CHAT)


KINDS = {"code edits": code_edits, "extractions": extractions, "summaries": summaries, "chat": chat}


def _beginning(path: str) -> str:
    """Return the first characters of a file, up to the end of a line."""
    text = (ROOT / path).read_text(encoding="utf-8")[:_MAX_CHARACTERS]
    return text.rsplit("\n", 1)[0]


def _prose(path: str) -> str:
    """Return the first paragraphs of a page without headings, code, tables and lists."""
    text = re.sub(r"```.*?```", "", (ROOT / path).read_text(encoding="utf-8"), flags=re.DOTALL)
    paragraphs = [part.strip() for part in text.split("\n\n")]
    prose = [part.replace("\n", " ") for part in paragraphs if part and part[0] not in "|#-*<!`1"]
    return "\n\n".join(prose)[:_MAX_CHARACTERS].rsplit(". ", 1)[0] + "."
