"""What clients may ask, as OpenAPI describes it. What is not there is refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from openresponses_types.types import (
    AssistantMessageItemParam,
    CompactionSummaryItemParam,
    CompactResponseMethodPublicBody,
    CreateResponseBody,
    DeveloperMessageItemParam,
    FunctionCallItemParam,
    FunctionCallOutputItemParam,
    IncludeEnum,
    ServiceTierEnum,
    SystemMessageItemParam,
    TruncationEnum,
    UserMessageItemParam,
)
from pydantic import BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag

from ccm.serving.errors import RequestError, unsupported

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # undeclared fields and types are refused
ToolChoice = Literal["auto", "none", "required"]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
LAX = Field(strict=False)  # strictly, an enumeration takes its members alone, and no texts


class UserMessage(UserMessageItemParam):
    """What the user said. The type of a message may be left out, and many clients do so."""

    type: Literal["message"] = "message"  # type: ignore[assignment]  # the package's is an enumeration, and required


class SystemMessage(SystemMessageItemParam):
    """What stands before all turns."""

    type: Literal["message"] = "message"  # type: ignore[assignment]  # as above


class DeveloperMessage(DeveloperMessageItemParam):
    """As a system message."""

    type: Literal["message"] = "message"  # type: ignore[assignment]  # as above


class AssistantMessage(AssistantMessageItemParam):
    """A reply of the past."""

    type: Literal["message"] = "message"  # type: ignore[assignment]  # as above


def _kind(item: Any) -> str:
    """The one form that an item is held to; capitalised, so that the places in errors leave it out, as class names."""
    given = item if isinstance(item, dict) else {}
    kind = given.get("type", "message")
    return (f"{given.get('role')} message" if kind == "message" else str(kind)).capitalize()


Item = Annotated[
    Annotated[UserMessage, Tag("User message")]
    | Annotated[SystemMessage, Tag("System message")]
    | Annotated[DeveloperMessage, Tag("Developer message")]
    | Annotated[AssistantMessage, Tag("Assistant message")]
    | Annotated[FunctionCallItemParam, Tag("Function_call")]
    | Annotated[FunctionCallOutputItemParam, Tag("Function_call_output")]
    | Annotated[CompactionSummaryItemParam, Tag("Compaction")],
    Discriminator(
        _kind,
        custom_error_type="item",
        custom_error_message="This server takes messages (of the user, assistant, system or developer), function_call, "
        "function_call_output and compaction",
    ),
]
Input = Annotated[str, Field(max_length=10 * 2**20)] | list[Item]


def check_calls(body: CreateResponse | ChatCompletion) -> None:
    """Refuse to require a call where there is no tool, and to forbid several at a time.

    Raises:
        RequestError: naming the field.
    """
    if body.tool_choice == "required" and not body.tools:
        raise RequestError("tool_choice is required, and there are no tools; give tools, too.", param="tool_choice")
    if body.parallel_tool_calls is False:
        raise unsupported("parallel_tool_calls: false", param="parallel_tool_calls")


class StrictBody(BaseModel):
    """A body without fields that nobody declared, and of the types that are declared alone."""

    model_config = STRICT


class Function(StrictBody):
    """What a tool is, as a chat template takes it."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_-]+$")]
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None  # no deeper than can be written again
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

    model_config = STRICT

    model: str
    input: Input | None = None  # type: ignore[assignment]  # the package's has kinds that we refuse
    max_output_tokens: Annotated[int, Field(ge=16)] | None = None  # type: ignore[assignment]  # the package's takes "16"
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None  # type: ignore[assignment]  # as above
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None  # type: ignore[assignment]  # as above
    include: list[Annotated[IncludeEnum, LAX]] | None = None
    truncation: Annotated[TruncationEnum, LAX] | None = None
    service_tier: Annotated[ServiceTierEnum, LAX] | None = None
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
            if getattr(self, name):
                raise unsupported(name)
        check_calls(self)
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

    model_config = STRICT

    input: Input | None = None  # type: ignore[assignment]  # as above


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


class TextFormat(StrictBody):
    """The one form of replies."""

    type: Literal["text"]


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
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    user: str | None = None
    # of the following, what most clients send by default, and no more
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: bool | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | None = None

    def check(self) -> None:
        """Refuse what this server does not do.

        Raises:
            RequestError: naming the field.
        """
        check_calls(self)
        if self.logprobs:
            raise unsupported("logprobs")
