"""What is on the page, and where; what it does is in `corral.server.page.events`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from corral.server.page.display import LATEX_DELIMITERS
from corral.server.page.tools import OWN_TOOLS

_WELCOME = """<div class="corral-welcome"><h1>Ask anything</h1>
<p>Answers come from the model on this server. Conversations stay in this browser.</p></div>"""
_TOOL_HINT = """[{"name": "get_weather",
  "description": "…",
  "parameters": {"type": "object", "properties":
    {"city": {"type": "string"}}}}]"""


@dataclass(frozen=True)
class Sampling:
    """The sampling controls. Their names are the API's."""

    temperature: gr.Slider
    top_p: gr.Slider
    top_k: gr.Slider
    min_p: gr.Slider
    repetition_penalty: gr.Slider
    max_tokens: gr.Number
    seed: gr.Number

    def components(self) -> list[Any]:
        """In the order of `names`."""
        return [getattr(self, name) for name in self.names()]

    @classmethod
    def names(cls) -> list[str]:
        """The fields of a request that the controls set."""
        return [field.name for field in fields(cls)]


@dataclass(frozen=True)
class Parts:
    """The components that events read and write."""

    kept: gr.JSON  # the conversation that is open, as the browser keeps it
    served: gr.JSON  # the models of the server
    file: gr.JSON  # an export on its way into a download
    chosen: gr.JSON  # a conversation on its way out of the browser's store
    new: gr.Button
    chats: gr.Radio
    delete: gr.Button
    export_markdown: gr.Button
    export_json: gr.Button
    export_all: gr.Button
    import_file: gr.Button
    title: gr.Textbox
    model: gr.Dropdown
    dark: gr.Button
    notice: gr.Markdown
    chat: gr.Chatbot
    results: gr.Column
    call: gr.Markdown
    result: gr.Textbox
    give_result: gr.Button
    box: gr.Textbox
    key: gr.Textbox
    system: gr.Textbox
    sampling: Sampling
    reset: gr.Button
    tools: gr.CheckboxGroup
    must_call: gr.Checkbox
    custom_tools: gr.Textbox
    retry_loading: gr.Timer

    def settings(self) -> list[Any]:
        """The components that make up a conversation's settings, in the order in which events take them."""
        return [
            self.model,
            self.system,
            self.tools,
            self.must_call,
            self.custom_tools,
            *self.sampling.components(),
        ]


def build_parts() -> Parts:
    """Lay the page out, inside a `gr.Blocks`."""
    return Parts(
        kept=gr.JSON(visible="hidden", elem_id="corral-kept"),
        served=gr.JSON(visible="hidden"),
        file=gr.JSON(visible="hidden"),
        chosen=gr.JSON(visible="hidden"),
        retry_loading=gr.Timer(2.0, active=False),
        **_conversations(),
        **_settings(),
        **_middle(),
    )


def _conversations() -> dict[str, Any]:
    with gr.Sidebar(position="left", width=272, elem_id="corral-chats-bar"):
        gr.HTML('<div class="corral-name"><span aria-hidden="true">◆</span> Corral</div>')
        parts: dict[str, Any] = {"new": gr.Button("New chat", variant="primary", elem_id="corral-new")}
        parts["chats"] = gr.Radio(
            [], label="Conversations", container=False, interactive=True, elem_id="corral-chats"
        )
        with gr.Row(elem_classes="corral-small"):
            parts["delete"] = gr.Button("Delete this chat", size="sm", elem_id="corral-delete", min_width=60)
        with gr.Accordion("Export and import", open=False, elem_id="corral-files"):
            parts["export_markdown"] = gr.Button(
                "This chat as Markdown", size="sm", elem_id="corral-markdown"
            )
            parts["export_json"] = gr.Button("This chat as JSON", size="sm", elem_id="corral-json")
            parts["export_all"] = gr.Button("All chats as JSON", size="sm", elem_id="corral-all")
            parts["import_file"] = gr.Button("Import JSON …", size="sm", elem_id="corral-import")
    return parts


def _settings() -> dict[str, Any]:
    with gr.Sidebar(position="right", width=320, open=False, elem_id="corral-settings-bar"):
        gr.HTML('<div class="corral-name">Settings</div>')
        parts: dict[str, Any] = {
            "key": gr.Textbox(
                label="API key",
                type="password",
                interactive=True,
                visible="hidden",
                elem_id="corral-key",
                info="This server asks for one. It is kept until this tab is closed.",
            ),
            "system": gr.Textbox(
                label="System prompt",
                interactive=True,
                lines=3,
                max_lines=10,
                placeholder="How the model should answer",
                elem_id="corral-system",
            ),
        }
        with gr.Accordion("Sampling", open=True):
            parts["sampling"] = _sampling()
            parts["reset"] = gr.Button("The server's defaults", size="sm", elem_id="corral-reset")
        with gr.Accordion("Tools", open=True):
            choices = [(label, name) for name, label in OWN_TOOLS.items()]
            parts["tools"] = gr.CheckboxGroup(
                choices,
                label="Run by this page",
                info="The model may call them.",
                interactive=True,
                elem_id="corral-tools",
            )
            parts["must_call"] = gr.Checkbox(
                label="It must call one",
                info="For small models, which seldom do so unasked.",
                interactive=True,
                elem_id="corral-must-call",
            )
            parts["custom_tools"] = gr.Textbox(
                label="Your own, as JSON",
                interactive=True,
                info="You type in what their calls return.",
                lines=4,
                max_lines=12,
                placeholder=_TOOL_HINT,
                elem_id="corral-custom-tools",
            )
    return parts


def _sampling() -> Sampling:
    def slider(label: str, low: float, high: float, step: float, info: str | None = None) -> gr.Slider:
        return gr.Slider(low, high, step=step, label=label, info=info, interactive=True)

    def number(label: str, minimum: int, info: str) -> gr.Number:
        return gr.Number(None, label=label, precision=0, minimum=minimum, info=info, interactive=True)

    return Sampling(
        temperature=slider("Temperature", 0, 2, 0.05, "0 always takes the likeliest token"),
        top_p=slider("Top p", 0.05, 1, 0.01),
        top_k=slider("Top k", 0, 200, 1, "0 for all tokens"),
        min_p=slider("Min p", 0, 1, 0.01),
        repetition_penalty=slider("Repetition penalty", 0.8, 2, 0.01),
        max_tokens=number("Longest answer", 1, "in tokens; empty: the server's"),
        seed=number("Seed", 0, "empty: another each time"),
    )


def _middle() -> dict[str, Any]:
    with gr.Column(elem_id="corral-middle"):
        parts = _top()
        parts["notice"] = gr.Markdown(visible=False, elem_id="corral-notice")
        parts["chat"] = gr.Chatbot(
            elem_id="corral-chat",
            show_label=False,
            label="Conversation",
            container=False,
            scale=1,
            height="100%",
            autoscroll=False,  # page.js does it: Gradio's own pulls down a reader who has scrolled up
            buttons=["copy"],
            feedback_options=None,
            editable="user",
            layout="bubble",
            latex_delimiters=LATEX_DELIMITERS,
            placeholder=_WELCOME,
            sanitize_html=True,
            allow_file_downloads=False,
        )
        parts |= _results()
        parts["box"] = gr.Textbox(
            show_label=False,
            label="Message",
            container=False,
            placeholder="Message",
            interactive=True,
            lines=1,
            max_lines=10,
            submit_btn=True,
            stop_btn=False,
            autofocus=True,
            elem_id="corral-box",
        )
    return parts


def _top() -> dict[str, Any]:
    """The conversation's title, the model, and the switch between light and dark."""
    parts: dict[str, Any] = {}
    with gr.Row(elem_id="corral-top"):
        parts["title"] = gr.Textbox(
            placeholder="New chat",
            interactive=True,
            container=False,
            show_label=False,
            max_lines=1,
            elem_id="corral-title",
            max_length=120,
            html_attributes=gr.InputHTMLAttributes(autocomplete="off", spellcheck=False),
        )
        parts["model"] = gr.Dropdown(
            [],
            label="Model",
            container=False,
            show_label=False,
            elem_id="corral-model",
            filterable=False,
            interactive=True,
        )
        parts["dark"] = gr.Button("◐", elem_id="corral-dark", min_width=40)
    return parts


def _results() -> dict[str, Any]:
    """Where a person types in what a tool gave."""
    parts: dict[str, Any] = {}
    with gr.Column(visible=False, elem_id="corral-results") as parts["results"]:
        parts["call"] = gr.Markdown()
        with gr.Row():
            parts["result"] = gr.Textbox(
                show_label=False,
                container=False,
                lines=2,
                scale=4,
                elem_id="corral-result",
                placeholder="Result",
                interactive=True,
            )
            parts["give_result"] = gr.Button(
                "Give result", variant="primary", scale=1, elem_id="corral-give", min_width=90
            )
    return parts
