"""Items and messages as messages of a chat template."""

from __future__ import annotations

import pytest

from ccm.serving.errors import RequestError
from ccm.serving.items import read_items


@pytest.mark.parametrize(
    "arguments", ["{", '{"x": NaN}', '{"x": "\\ud800"}', "[" * 400 + "]" * 400, '{"x": ' + "9" * 5000 + "}"]
)
def test_arguments_of_a_call_that_a_template_could_not_write_are_refused(arguments: str) -> None:
    call = {"type": "function_call", "call_id": "x", "name": "weather", "arguments": arguments}
    with pytest.raises(RequestError, match="The arguments of the call of weather are no JSON"):
        read_items([call])
