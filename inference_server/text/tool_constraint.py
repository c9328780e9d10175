"""Compiles the grammar of a reply with tool calls, with any arguments where the tools' schemas cannot be enforced."""

from inference_server.generation import Constraint
from inference_server.text.grammar import GrammarError, Grammars
from inference_server.text.schema_faults import located
from inference_server.text.tool_formats import ToolFormat
from inference_server.text.tools.call_grammar import ReplyForm, reply_grammar


def calls_constraint(grammars: Grammars, tool_format: ToolFormat, form: ReplyForm) -> Constraint | None:
    """Return the constraint of replies in the given form, or None if it cannot be enforced and free text is allowed.

    Forced calls fit their tools' schemas. If the reply may be something else, a tool's schema that cannot be enforced
    must not fail the request. A second grammar then allows any arguments. If this grammar fails too, free text remains
    unconstrained.

    Raises:
        GrammarError: The tools' schemas of forced calls, or the document's schema, cannot be enforced.
    """
    try:
        return grammars.lark(reply_grammar(tool_format, form, grammars.literal))
    except GrammarError as error:
        is_tools = any(located(error.cause, tool.parameters) for tool in form.tools)
        if form.beside == "nothing" or (form.beside == "document" and not is_tools):
            raise
    try:
        return grammars.lark(reply_grammar(tool_format, form.with_any_arguments(), grammars.literal))
    except GrammarError:
        if form.beside == "text":
            return None
        raise
