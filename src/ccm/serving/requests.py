"""What clients may ask, as OpenAPI describes it. What is not there is refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from openresponses_types.types import CompactResponseMethodPublicBody, CreateResponseBody
from pydantic import BaseModel, ConfigDict, Field

from ccm.serving.errors import unsupported

ToolChoice = Literal["auto", "none", "required"]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


class StrictBody(BaseModel):
    """A body without fields that nobody declared."""

    model_config = ConfigDict(extra="forbid")


class Function(StrictBody):
    """What a tool is, as a chat template takes it."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class FunctionTool(Function):
    """The definition of a function that the model may call."""

    type: Literal["function"]

    @property
    def definition(self) -> dict[str, Any]:
        """As a chat template takes it."""
        return {"type": "function", "function": self.model_dump(exclude_none=True, exclude={"type", "strict"})}


class Compaction(StrictBody):
    """When the server adds a compaction item to what it answers."""

    type: Literal["compaction"]
    compact_threshold: Annotated[int, Field(ge=1, description="Tokens of the conversation from which on it does.")]


class CreateResponse(CreateResponseBody):
    """The body of ``POST /v1/responses``."""

    model_config = ConfigDict(extra="forbid")

    model: str
    tools: list[FunctionTool] | None = None  # type: ignore[assignment]  # the package's drops the parameters
    tool_choice: ToolChoice | None = None  # type: ignore[assignment]  # the package's takes forms that we refuse
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    context_management: list[Compaction] | None = None

    def check(self) -> None:
        """Refuse what this server does not do.

        Raises:
            RequestError: naming the field.
        """
        for name in ("background", "presence_penalty", "frequency_penalty", "top_logprobs", "max_tool_calls"):
            value = getattr(self, name)
            if getattr(value, "root", value):
                raise unsupported(name)
        if self.parallel_tool_calls is False:
            raise unsupported("parallel_tool_calls: false")
        if self.include:
            raise unsupported("include")
        if self.text is not None and (self.text.verbosity or getattr(self.text.format, "type", "text") != "text"):
            raise unsupported("text", "leave it out, or ask for the format text")
        if self.reasoning is not None and (self.reasoning.effort or self.reasoning.summary):
            raise unsupported("reasoning")
        if self.service_tier not in (None, "auto", "default"):
            raise unsupported("service_tier")
        if self.stream_options is not None and self.stream_options.include_obfuscation:
            raise unsupported("stream_options.include_obfuscation")


class Compact(CompactResponseMethodPublicBody):
    """The body of ``POST /v1/responses/compact``."""

    model_config = ConfigDict(extra="forbid")


class ChatTool(StrictBody):
    """A tool of a chat completion."""

    type: Literal["function"]
    function: Function


class TextPart(StrictBody):
    """A part of a message of a chat completion."""

    type: Literal["text"]
    text: str


class CalledFunction(StrictBody):
    """What a call of a tool calls."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    arguments: str


class ChatToolCall(StrictBody):
    """A call of a tool, as a completion had it."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(StrictBody):
    """A message of a chat completion; the last four fields are those with which clients send replies back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: Annotated[list[ChatToolCall], Field(min_length=1)] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None


class StreamOptions(StrictBody):
    """How a stream ends."""

    include_usage: bool | None = None


class ChatCompletion(StrictBody):
    """The body of ``POST /v1/chat/completions``."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    tools: list[ChatTool] | None = None
    tool_choice: ToolChoice | None = None
    n: Literal[1] | None = None
    user: str | None = None
