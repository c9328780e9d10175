"""Combines a request's sampling parameters with the model's defaults, and converts them for the engine."""

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inference_server.errors import FieldViolation, InvalidField
from inference_server.generation import PENALTIES, LogitBias, SamplingParams
from tailrace.v1 import inference_pb2 as pb
from tailrace_shared.request_fields import DETERMINISTIC_SEED, SAMPLING_FIELDS

if TYPE_CHECKING:
    from inference_server.serving.hosted_model import HostedModel

# Names of the sampling parameters that are passed to the engine unchanged, if they are set.
_ENGINE_FIELDS = {field.name for field in SAMPLING_FIELDS if field.is_engine_default}
_MAX_UNKNOWN = 16  # longest list of unknown tokens in an error
# Largest seed that the server draws: the largest one that the REST interface accepts.
_MAX_DRAWN_SEED = 9_999_999_999


def sampling_defaults(model: "HostedModel") -> pb.Sampling:
    """Return the model's defaults for sampling parameters that a request does not set."""
    return _message(model.sampling)


def with_defaults(request: pb.RunRequest, model: "HostedModel", *, is_constrained: bool) -> pb.Sampling:
    """Return the request's parameters, with the model's defaults for those that it does not set.

    Args:
        request: The request.
        model: The requested model.
        is_constrained: True if a grammar constrains the reply. The model's default penalties then do not apply, because
            they would lower the logits of brackets and quotes, which every JSON document repeats.
    """
    omitted = PENALTIES if is_constrained else ()
    sampling = _message({name: value for name, value in model.sampling.items() if name not in omitted})
    sampling.MergeFrom(request.sampling)
    return sampling


def _message(values: Mapping[str, Any]) -> pb.Sampling:
    return pb.Sampling(**values)


def sampling_params(
    sampling: pb.Sampling, request: pb.RunRequest, vocab_size: int, *, has_fixed_seed: bool = False
) -> SamplingParams:
    """Convert sampling parameters to those of the engine.

    Args:
        sampling: The result of `with_defaults`.
        request: The request; only its `logprobs` are read.
        vocab_size: Number of tokens in the model's vocabulary.
        has_fixed_seed: True if a request without a seed gets DETERMINISTIC_SEED instead of a drawn one.

    Raises:
        InvalidField: `logit_bias` has a token id that is not in the vocabulary.
    """
    given = {field.name: value for field, value in sampling.ListFields() if field.name in _ENGINE_FIELDS}
    if sampling.HasField("seed"):
        seed = sampling.seed
    else:
        seed = DETERMINISTIC_SEED if has_fixed_seed else random.SystemRandom().randint(1, _MAX_DRAWN_SEED)
    logprobs = request.logprobs.top if request.HasField("logprobs") else None
    return SamplingParams(seed=seed, logprobs=logprobs, logit_bias=_logit_bias(sampling, vocab_size), **given)


def _logit_bias(sampling: pb.Sampling, vocab_size: int) -> LogitBias | None:
    """Return the logit bias, or None without one. Raises InvalidField for a token id that is not in the vocabulary."""
    if not sampling.logit_bias:
        return None
    if unknown := sorted(token_id for token_id in sampling.logit_bias if token_id >= vocab_size):
        sentence = f"is not a token of this model: its vocabulary has the ids 0 to {vocab_size - 1}"
        raise InvalidField(
            *(FieldViolation(f"sampling.logit_bias[{each}]", sentence) for each in unknown[:_MAX_UNKNOWN])
        )
    return LogitBias.of(sampling.logit_bias)
