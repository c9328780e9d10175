"""Converts the input items of a Responses body to the turns of a conversation.

Thoughts, text and calls of one reply are separate items. They become one turn of the assistant.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from http_bridge.api.responses.thoughts import REASONING_ID, thoughts_of
from http_bridge.api.responses.tools import INPUT, Toolbox, function_name
from http_bridge.errors import ApiError
from http_bridge.protocol.bodies.messages import arguments_text, reads_text_only
from http_bridge.protocol.validation.documents import MAX_DEPTH, bad_field, bad_input, is_deeper
from http_bridge.protocol.validation.problems import Problem
from tailrace.v1 import inference_pb2 as pb

Document = Mapping[str, Any]

_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_PICTURES = ("input_image", "image_url", "image", "computer_screenshot")
# Items of OpenAI's own tools, which are ignored. Their results are in other items, or the client does not send them.
_WITHOUT_TEXT = (
    "web_search_call",
    "file_search_call",
    "code_interpreter_call",
    "computer_call",
    "mcp_list_tools",
    "mcp_approval_request",
    "mcp_approval_response",
    "tool_search_call",
)
# Roles of tool results in chat completions. Here a result is a separate item.
_CHAT_ROLES = ("tool", "function")
_WHY_REFUSED = {
    "compaction": "is encrypted by another service",
    "compaction_summary": "is encrypted by another service",
    "compaction_trigger": "is not supported: the client must shorten the conversation",
    "image_generation_call": "is a picture, and the model {model} reads text only",
    "computer_call_output": "is a picture, and the model {model} reads text only",
}

# Length limit, in characters of JSON, of all items together that a request refers to: about the largest body. A
# reference is short, so a body could otherwise refer to gigabytes.
_MAX_RECALLED = 4_000_000


class Conversation:
    """A conversation that grows item by item. `turns`: its turns so far."""

    def __init__(self, model: str, toolbox: Toolbox, recall: Callable[[str], Document | None]) -> None:
        """Start an empty conversation.

        Args:
            model: Name of the model, for error messages.
            toolbox: Receives the tools that items add.
            recall: Returns the item of a recent reply by its id; None if it is not in memory.
        """
        self._recall = recall
        self._turns: list[pb.ChatTurn] = []
        # Thoughts of the last turn. They are joined once: each assignment to a field of a protobuf message allocates
        # memory that is freed only with the message.
        self._thoughts: list[str] = []
        self._model = model
        self._toolbox = toolbox
        self._call_names: dict[str, str] = {}
        self._is_open = False
        self._num_recalled = 0

    @property
    def turns(self) -> list[pb.ChatTurn]:
        """The turns so far."""
        self._join_thoughts()
        return self._turns

    def add_message(self, role: str, content: str) -> None:
        """Add a message. An assistant's text joins the turn of the thoughts before it."""
        if role != "assistant":
            self._add(pb.ChatTurn(role=role, content=content))
            return
        turn = self._assistant()
        if turn.content or turn.tool_calls:
            turn = self._new_assistant()
        turn.content = content

    def add_item(self, item: Document, path: str) -> None:
        """Add an input item.

        Args:
            item: The item.
            path: Its path in the body.

        Raises:
            ApiError: 400/5006 if the item is incomplete or cannot be converted to text.
        """
        kind = item.get("type") or ("message" if item.get("role") is not None else "item_reference")
        read = _READERS.get(kind)
        if read is not None:
            read(self, item, path)
        elif kind in _WHY_REFUSED:
            raise bad_field(path, f"({kind}) {_WHY_REFUSED[kind].format(model=self._model)}")
        elif kind not in _WITHOUT_TEXT:
            raise bad_field(f"{path}/type", f"{kind:.100} is not a known type of item")

    def _message(self, item: Document, path: str) -> None:
        if item.get("role") is None:
            raise _missing(path, "role")
        if item["role"] in _CHAT_ROLES or item.get("tool_calls"):
            raise bad_field(path, "is a message of chat completions: send function_call and function_call_output items")
        self.add_message(item["role"], self._text(item.get("content"), f"{path}/content"))

    def _reference(self, item: Document, path: str) -> None:
        item_id = str(item.get("id") or "")
        found = self._recall(item_id)
        if found is not None:
            self._num_recalled += len(json.dumps(found))
            if self._num_recalled > _MAX_RECALLED:
                raise bad_field(path, f"makes the items that are referred to longer than {_MAX_RECALLED} characters")
            self.add_item(found, path)
        elif not item_id.startswith(REASONING_ID):
            # A conversation without its thoughts has the same meaning, so only other items are refused.
            raise bad_field(
                path,
                f"refers to the item {item_id:.100}, which is not stored: send the item itself. Clients that store replies "
                "(Vercel's AI SDK: providerOptions.openai.store) must set store to false.",
            )

    def _reasoning(self, item: Document, path: str) -> None:
        turn = self._assistant()
        if turn.content or turn.tool_calls:
            turn = self._new_assistant()
        self._thoughts.append(thoughts_of(item))

    def _function_call(self, item: Document, path: str) -> None:
        self._call(item, path, _arguments(item.get("arguments"), f"{path}/arguments"))

    def _custom_call(self, item: Document, path: str) -> None:
        text = item.get("input")
        if not isinstance(text, str):
            raise bad_field(f"{path}/input", "must be a string")
        self._call(item, path, json.dumps({INPUT: text}, ensure_ascii=False))

    def _named_call(self, item: Document, path: str) -> None:
        """Add a call of a tool that has its own item type, such as local_shell_call."""
        name = item["type"].removesuffix("_call")
        arguments = item.get("action") or item.get("operation") or {}
        self._call({**item, "name": name}, path, _arguments(arguments, f"{path}/action"))

    def _mcp_call(self, item: Document, path: str) -> None:
        call_id = item.get("id") or ""
        self._call({**item, "call_id": call_id}, path, _arguments(item.get("arguments"), f"{path}/arguments"))
        self._result({"call_id": call_id, "output": item.get("output") or item.get("error") or ""}, path)

    def _call(self, item: Document, path: str, arguments: str) -> None:
        name = item.get("name")
        if not isinstance(name, str) or not name:
            raise _missing(path, "name")
        name = function_name(name, item.get("namespace"))
        call_id = str(item.get("call_id") or item.get("id") or "")
        self._call_names[call_id] = name
        self._assistant().tool_calls.add(id=call_id, name=name, arguments=arguments)

    def _result(self, item: Document, path: str) -> None:
        call_id = str(item.get("call_id") or item.get("id") or "")
        content = self._text(item.get("output"), f"{path}/output")
        name = item.get("name") or self._call_names.get(call_id, "")
        self._add(pb.ChatTurn(role="tool", content=content, tool_call_id=call_id, name=name))

    def _more_tools(self, item: Document, path: str) -> None:
        tools = item.get("tools")
        if isinstance(tools, list):
            self._toolbox.add([tool for tool in tools if isinstance(tool, Mapping)], f"{path}/tools")

    def _add(self, turn: pb.ChatTurn) -> None:
        self._join_thoughts()
        self._turns.append(turn)
        self._is_open = False

    def _assistant(self) -> pb.ChatTurn:
        """Return the assistant's turn that the last item belongs to, or a new one."""
        return self._turns[-1] if self._is_open else self._new_assistant()

    def _new_assistant(self) -> pb.ChatTurn:
        self._add(pb.ChatTurn(role="assistant"))
        self._is_open = True
        return self._turns[-1]

    def _join_thoughts(self) -> None:
        if self._thoughts:
            self._turns[-1].reasoning += "".join(self._thoughts)
            self._thoughts = []

    def _text(self, content: Any, path: str) -> str:
        """Return the text of a string or of a list of parts. Any other value is returned as JSON."""
        if content is None or isinstance(content, str):
            return content or ""
        if not isinstance(content, list):
            return json.dumps(content, ensure_ascii=False)
        return "".join(self._part(part, f"{path}/{index}") for index, part in enumerate(content))

    def _part(self, part: Any, path: str) -> str:
        if isinstance(part, str):
            return part
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _PICTURES:
            raise bad_field(path, f"({kind}) is a picture, and {reads_text_only(self._model)}")
        if kind == "refusal":
            return str(part.get("refusal") or "")
        if kind in _TEXT_PARTS:
            if not isinstance(part.get("text"), str):
                raise _missing(path, "text")
            return str(part["text"])
        if kind is None and isinstance(part, Mapping) and "outcome" in part:
            # A result of OpenAI's shell tool: stdout, stderr and the exit code.
            return json.dumps(part, ensure_ascii=False)
        raise bad_field(path, f"({str(kind):.100}) is not text, and {reads_text_only(self._model)}")


def _missing(path: str, name: str) -> ApiError:
    return bad_input(Problem(path, f"required properties at '{path}' are '{name}'"))


def _arguments(arguments: Any, path: str) -> str:
    """Return the arguments as the text of a JSON object."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
    elif arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping) or is_deeper(arguments, MAX_DEPTH):
        raise bad_field(path, f"must be a JSON object as text, nested at most {MAX_DEPTH} deep")
    return arguments_text(arguments)


_READERS: dict[str, Callable[[Conversation, Document, str], None]] = {
    "message": Conversation._message,
    "reasoning": Conversation._reasoning,
    "item_reference": Conversation._reference,
    "function_call": Conversation._function_call,
    "custom_tool_call": Conversation._custom_call,
    "local_shell_call": Conversation._named_call,
    "shell_call": Conversation._named_call,
    "apply_patch_call": Conversation._named_call,
    "mcp_call": Conversation._mcp_call,
    "function_call_output": Conversation._result,
    "custom_tool_call_output": Conversation._result,
    "local_shell_call_output": Conversation._result,
    "shell_call_output": Conversation._result,
    "apply_patch_call_output": Conversation._result,
    "additional_tools": Conversation._more_tools,
    "tool_search_output": Conversation._more_tools,
}
