"""Starts vLLM's processes and sends requests to them. Only this module imports vLLM, and only when a model is loaded.

vLLM provides tensor and pipeline parallelism, multi-node execution, and models that the native engine does not support.
This server still handles prompts, limits, admission, fair scheduling, text, stop strings and tool calls. vLLM receives
and returns token ids. docs/vllm.md lists the differences.
"""

import dataclasses
import importlib.util
import multiprocessing
import os
import signal
from collections.abc import AsyncGenerator, Mapping, Sequence, Set
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from inference_server.engine.vllm.engine_args import check_names
from inference_server.engine.vllm.sampling_params import grammar_arguments, sampling_arguments
from inference_server.engine.vllm.step_stats import StepStats
from inference_server.errors import UnsupportedModel
from inference_server.generation import GenerationRequest

# vLLM reads these variables when it is imported. Values that the user has set are kept.
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",  # disables usage reports to vLLM's developers
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would copy the locks of gRPC's and torch's threads without the threads
}


class VllmClient:
    """A running vLLM. All methods except the constructor and `shut_down` must be called on the event loop.

    Attributes:
        steps: Statistics of vLLM's steps.
        vocab_size: Logits per position.
        num_blocks: Blocks of the KV cache.
        end_ids: Tokens that end a reply, within the vocabulary.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        end_ids: Set[int],
        *,
        scope_by_account: bool,
        adapters: Sequence[Path] = (),
    ) -> None:
        """Load the model in processes of vLLM. Blocks until the model is loaded.

        Args:
            arguments: Arguments of vLLM's AsyncEngineArgs.
            end_ids: Tokens that end a reply.
            scope_by_account: True if an account cannot reuse the prefix cache of another account.
            adapters: Folders of the LoRA adapters that requests may use.

        Raises:
            UnsupportedModel: vLLM is not installed, does not accept one of the arguments, or does not start.
        """
        check_installed()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        # On Ctrl-C, a terminal sends SIGINT to all of its processes. vLLM's processes inherit the blocked signal, so
        # that only the server stops them. Starting the resource tracker unblocks SIGINT, so the tracker is started
        # first.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        check_names(arguments, {field.name for field in dataclasses.fields(AsyncEngineArgs)})
        self.steps = StepStats()
        try:
            engine_arguments = AsyncEngineArgs(**arguments)
            self._llm: Any = AsyncLLM.from_engine_args(engine_arguments, stat_loggers=[self.steps.logger])
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UnsupportedModel(f"vLLM rejects it: {_reason(error)}") from error
        except RuntimeError as error:
            raise UnsupportedModel(f"vLLM did not start (its own messages are above): {_reason(error)}") from error
        self.vocab_size: int = self._llm.model_config.get_vocab_size()
        self.num_blocks: int = self._llm.vllm_config.cache_config.num_gpu_blocks or 0
        self.end_ids = frozenset(token_id for token_id in end_ids if token_id < self.vocab_size)
        self._scope_by_account = scope_by_account
        self._adapters = adapters

    @property
    def is_dead(self) -> bool:
        """True if vLLM's processes have ended or do not respond."""
        return bool(self._llm.errored)

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Any, None]:
        """Return an iterator over vLLM's outputs, each with only the new tokens.

        Closing the iterator early aborts the request.
        """
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        structure = None
        if request.constraint is not None:
            structure = StructuredOutputsParams(**grammar_arguments(request.constraint.grammar))
        params = SamplingParams(
            **sampling_arguments(request, self.end_ids),
            structured_outputs=structure,
            output_kind=RequestOutputKind.DELTA,
        )
        salt = request.account if self._scope_by_account else ""
        prompt = tokens_input(list(request.prompt_ids), cache_salt=salt or None)
        outputs: AsyncGenerator[Any, None] = self._llm.generate(
            prompt, params, request.request_id, **self._lora_arguments(request.adapter)
        )
        return outputs

    def _lora_arguments(self, adapter: int) -> dict[str, Any]:
        """Return the arguments of vLLM's `generate` for an adapter, from 1; 0 for none."""
        if not adapter:
            return {}
        from vllm.lora.request import LoRARequest

        folder = str(self._adapters[adapter - 1])
        return {"lora_request": LoRARequest(f"adapter-{adapter}", adapter, folder)}

    def shut_down(self, seconds: float) -> None:
        """Stop the processes, and kill them after `seconds`. Blocks until they have ended."""
        self._llm.shutdown(timeout=seconds)


def end_unfinished() -> None:
    """Kill all child processes that multiprocessing has started, after the start of vLLM was cancelled."""
    for child in multiprocessing.active_children():
        child.kill()


def check_installed() -> None:
    """Raise UnsupportedModel with instructions if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise UnsupportedModel(
            'engine = "vllm" needs vLLM, which is not installed: create an environment for it, and in a clone of Tailrace '
            "run pip install '.[vllm]' (docs/vllm.md)"
        )


def _reason(error: Exception) -> str:
    """Return the first line of the message that names a problem.

    Skips pydantic's first line, which counts the errors.
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line and "validation error" not in line), repr(error))
