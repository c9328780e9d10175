"""vLLM itself: its processes, and requests to them. The only module that imports it."""

import dataclasses
import importlib.util
import multiprocessing
import os
import signal
from collections.abc import AsyncGenerator, Mapping, Set
from multiprocessing import resource_tracker
from typing import Any

from inference_server.engine.sequence import GenerationRequest
from inference_server.engine.vllm.engine_args import check_names
from inference_server.engine.vllm.sampling_params import grammar_arguments, sampling_arguments
from inference_server.engine.vllm.step_stats import Steps
from inference_server.errors import UnsupportedModel

# Read when vLLM is imported; what the user has set stays.
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",  # it would send them away
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would inherit gRPC's and torch's threads, without the threads
}


class VllmClient:
    """Made on a thread of its own, slowly: the model is loaded, in other processes. Its methods belong to the event loop."""

    def __init__(self, arguments: Mapping[str, Any], end_ids: Set[int], *, scope_by_account: bool) -> None:
        """`arguments`: of AsyncEngineArgs. `scope_by_account`: no account takes over what another one's prompts left.

        Raises UnsupportedModel if vLLM is not there, has no such arguments, or cannot start.
        """
        check_installed()
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        # A terminal sends Ctrl-C to all of its processes; vLLM's, which inherit this, wait for the server to stop them.
        # The tracker would lift it when it is started, so it is started before.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        check_names(arguments, {field.name for field in dataclasses.fields(AsyncEngineArgs)})
        self.steps = Steps()
        try:
            engine_arguments = AsyncEngineArgs(**arguments)
            self._llm: Any = AsyncLLM.from_engine_args(engine_arguments, stat_loggers=[self.steps.logger])
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UnsupportedModel(f"vLLM refuses it: {_reason(error)}") from error
        except RuntimeError as error:
            raise UnsupportedModel(f"vLLM did not start (its own messages are above): {_reason(error)}") from error
        self.vocab_size: int = self._llm.model_config.get_vocab_size()
        self.num_blocks: int = self._llm.vllm_config.cache_config.num_gpu_blocks or 0
        self.end_ids = frozenset(token_id for token_id in end_ids if token_id < self.vocab_size)
        self._scope_by_account = scope_by_account

    @property
    def is_dead(self) -> bool:
        """Whether its processes have ended, or can no more be reached."""
        return bool(self._llm.errored)

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Any, None]:
        """vLLM's outputs, each with its new tokens alone. Closing it early aborts the request."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        form = None
        if request.constraint is not None:
            form = StructuredOutputsParams(**grammar_arguments(request.constraint.grammar))
        params = SamplingParams(
            **sampling_arguments(request, self.end_ids), structured_outputs=form, output_kind=RequestOutputKind.DELTA
        )
        salt = request.account if self._scope_by_account else ""
        prompt = tokens_input(list(request.prompt_ids), cache_salt=salt or None)
        outputs: AsyncGenerator[Any, None] = self._llm.generate(prompt, params, request.request_id)
        return outputs

    def shut_down(self, seconds: float) -> None:
        """End its processes, by force after so many seconds. Blocks that long."""
        self._llm.shutdown(timeout=seconds)


def end_unfinished() -> None:
    """End processes whose start is not waited for any more."""
    for child in multiprocessing.active_children():
        child.kill()


def check_installed() -> None:
    """Raises UnsupportedModel with what to do."""
    if importlib.util.find_spec("vllm") is None:
        raise UnsupportedModel(
            'engine = "vllm" needs vLLM, which is not installed: create an environment for it, and in a clone of Tailrace '
            "run pip install '.[vllm]' (docs/vllm.md)"
        )


def _reason(error: Exception) -> str:
    """The first line that says something: pydantic's begins with how many errors there are."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line and "validation error" not in line), repr(error))
