"""Tools with a real model whose chat template has no place for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from corral.engine.grammar.calls import call_grammar
from corral.engine.sampling.params import SamplingParams, StructuredOutputsParams
from corral.llm import LLM
from corral.text.template import TemplateRenderer
from corral.text.tool_calls.parser import CallParser
from corral.text.tool_calls.pieces import CallEnded, TextPiece

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 30}},
    "required": ["city"],
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather in a city.", "parameters": PARAMETERS},
}
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> LLM:
    return LLM(str(smollm2_path), threads=1, max_model_len=1024)


def test_a_forced_call_is_made_and_its_result_goes_on_in_the_dialog(llm: LLM) -> None:
    assert isinstance(llm.renderer, TemplateRenderer)
    assert not llm.renderer.places().tools
    forced = StructuredOutputsParams(grammar=call_grammar([TOOL]))
    params = SamplingParams(temperature=0, max_tokens=80, structured_outputs=forced)
    (result,) = llm.chat([QUESTION], params, tools=[TOOL], use_tqdm=False)
    (output,) = result.outputs
    assert output.finish_reason == "stop"
    parser = CallParser([TOOL])
    (ended,) = [p for p in parser.push(output.text) if isinstance(p, CallEnded)]
    assert parser.finish(complete=True) == []
    assert ended.call is not None
    jsonschema.validate(ended.call.arguments, PARAMETERS)
    assert ended.call.arguments["city"] == "Paris"

    dialog: list[dict[str, Any]] = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [ended.call.to_dict()]},
        {"role": "tool", "content": "It is 25 degrees Celsius and sunny.", "tool_call_id": ended.call.id},
    ]
    prompt = llm.tokenizer.decode(llm.render(dialog, [TOOL]).tokens)
    assert "<|im_start|>user\nResult of {" in prompt
    assert "It is 25 degrees Celsius and sunny.<|im_end|>" in prompt
    greedy = SamplingParams(temperature=0, max_tokens=24)
    (result,) = llm.chat(dialog, greedy, tools=[TOOL], use_tqdm=False)
    text = result.outputs[0].text
    parser = CallParser([TOOL])
    assert parser.push(text) + parser.finish(complete=True) == [TextPiece(text)]
