"""Converts refusals that depend on a model's files to JSON in recordings, and back.

These are a prompt that is too long, and a field that the model's chat template or tokenizer cannot use. Other refusals
are not recorded. A replay finds most of them itself, and others depend on the load.
"""

from inference_server.errors import FieldViolation, InvalidField, PromptTooLong
from inference_server.grpc_api.recordings.canonical import JsonObject

Refusal = PromptTooLong | InvalidField
REFUSALS = (PromptTooLong, InvalidField)


def is_lasting(error: Refusal) -> bool:
    """Return False if the same request may be accepted later, so that its refusal is not recorded."""
    return not (isinstance(error, InvalidField) and error.is_transient)


def refusal_json(error: Refusal) -> JsonObject:
    """Return the JSON object of a refusal."""
    if isinstance(error, PromptTooLong):
        details: JsonObject = {"prompt_tokens": error.prompt_tokens, "context_length": error.context_length}
    else:
        details = {"violations": [{"field": each.field, "description": each.description} for each in error.violations]}
    return {"reason": error.reason, **details}


def refusal_of_json(value: JsonObject) -> Refusal:
    """Return the error of a JSON object: the inverse of `refusal_json`.

    Raises:
        ValueError, TypeError, KeyError: The object is not a refusal.
    """
    reason = value["reason"]
    if reason == PromptTooLong.reason:
        return PromptTooLong(int(value["prompt_tokens"]), int(value["context_length"]))
    if reason == InvalidField.reason and value["violations"]:
        violations = [FieldViolation(str(each["field"]), str(each["description"])) for each in value["violations"]]
        return InvalidField(*violations)
    raise ValueError(f"the error has the reason {reason}, which is not replayed")
