"""Renders a model's chat template, and turns its exceptions into errors that name the request's field."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from jinja2 import Environment, meta
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from inference_server.errors import FieldViolation, InvalidField, UnsupportedModel
from inference_server.text import tool_formats

# Messages, tools and variables as chat templates expect them: JSON.
Json = Any


class ChatTemplate:
    """Renders prompts with the chat template of one model, and lists the variables that the template reads."""

    def __init__(self, tokenizer: Any, source: object) -> None:
        """Create a template.

        Args:
            tokenizer: The transformers tokenizer.
            source: Jinja text, a dictionary of several templates by name as transformers holds them, or None.
        """
        self._tokenizer = tokenizer
        self.source = source
        self.supports_tools = tool_formats.supports_tools(source)

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names of the variables that the template reads."""
        texts = self.source.values() if isinstance(self.source, dict) else [self.source]
        found: set[str] = set()
        for text in filter(lambda text: isinstance(text, str), texts):
            # jinja2 does not report a variable to which the template assigns a default value if it is undefined.
            found.update(re.findall(r"\b(\w+)\s+is\s+(?:not\s+)?(?:un)?defined\b", text))
            try:
                found |= meta.find_undeclared_variables(_ENVIRONMENT.parse(_GENERATION_TAG.sub("", text)))
            except TemplateError:  # rendering raises the error
                continue
        return frozenset(found)

    def render(
        self,
        messages: Json,
        tools: Json = (),
        *,
        arguments: Mapping[str, Json] | None = None,
        add_generation_prompt: bool = True,
        continued_key: str = "",
    ) -> str:
        """Return the text of a prompt.

        Args:
            messages: The conversation.
            tools: The tools.
            arguments: Further variables.
            add_generation_prompt: Add the beginning of the assistant's turn.
            continued_key: Key of the text in the last message that the reply continues; empty: none.

        Raises:
            InvalidField: The template rejects the conversation, or there is no template.
            UnsupportedModel: The template is not valid Jinja.
        """
        if self.source is None:
            raise InvalidField(
                FieldViolation("chat", "is not possible: this model has no chat template; send raw text")
            )
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages,
                    tools=list(tools) or None,
                    chat_template=self.source,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt and not continued_key,
                    continue_final_message=continued_key == "content" or continued_key or False,
                    **(arguments or {}),
                )
            )
        except TemplateSyntaxError as error:
            raise UnsupportedModel(f"its chat template has an error in line {error.lineno}: {error.message}") from None
        except TemplateError as error:
            raise InvalidField(
                FieldViolation("chat.turns", f"do not fit this model's chat template: {str(error)[:_MAX_SHOWN]}")
            ) from None
        except Exception as error:  # a template is a program, which may raise any exception
            if continued_key and isinstance(error, ValueError):
                raise InvalidField(
                    FieldViolation(
                        "chat.continue_final_turn", "is not possible: the chat template changes this turn's text"
                    )
                ) from None
            raise InvalidField(FieldViolation("chat.turns", "do not fit this model's chat template")) from error


# Longest message of a template in an error: a template may repeat a whole turn, and a status is sent in a header.
_MAX_SHOWN = 300
# transformers adds this tag to Jinja; it marks the text of assistants.
_GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
_ENVIRONMENT = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False)  # noqa: S701 (only parses)
