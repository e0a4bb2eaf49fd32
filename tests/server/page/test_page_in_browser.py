"""The page, driven in headless Chromium, in front of the real server and the default model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from corral.model.presets import DEFAULT_MODEL
from tests.engine.engines import wait_until
from tests.server.page.conftest import KEY, OpenPage
from tests.server.page.page_server import PageServer

FRANCE = "What is the capital of France? Answer in one sentence."
STORY = "Write a long story about a horse, with many chapters."
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Bern", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def answer_of(server: PageServer, question: str, **fields: Any) -> str:
    """What the API answers."""
    body = {"model": DEFAULT_MODEL, "messages": [{"role": "user", "content": question}], **fields}
    answer = httpx.post(f"{server.base_url}/v1/chat/completions", json=body, timeout=60).json()
    return str(answer["choices"][0]["message"]["content"])


def test_a_question_gets_the_answer_of_the_api_and_how_it_was_made(
    server: PageServer, open_page: OpenPage
) -> None:
    chat = open_page(server)
    chat.ask(FRANCE)
    assert chat.questions() == [FRANCE]
    assert answer_of(server, FRANCE) in chat.answers()[0]
    (line,) = chat.boxes()
    assert "tokens/s" in line
    assert "first token" in line
    assert "of 8,192" in line


def test_stop_keeps_what_there_is_and_frees_the_engine(server: PageServer, open_page: OpenPage) -> None:
    chat = open_page(server)
    chat.send(STORY)
    chat.until("() => document.querySelector('#corral-chat .bot-row')?.innerText.length > 60")
    chat.click("#corral-box .stop-button")
    chat.see("stopped")
    wait_until(lambda: server.is_idle)
    chat.send(STORY)
    chat.page.locator("#corral-box .stop-button").wait_for()
    chat.page.keyboard.press("Escape")
    chat.wait()
    assert len(chat.questions()) == 2


def test_regenerate_edit_and_undo(server: PageServer, open_page: OpenPage) -> None:
    chat = open_page(server)
    chat.ask(FRANCE)
    first = chat.answers()
    lines = chat.boxes()
    chat.press("Retry")
    chat.until("(old) => !document.querySelector('#corral-chat').innerText.includes(old)", lines[0])
    chat.wait()
    assert chat.questions() == [FRANCE]
    assert chat.answers()[0].split("\n")[0] == first[0].split("\n")[0]

    chat.ask("Thank you.")
    chat.page.locator("#corral-chat").get_by_label("Edit", exact=True).first.click()
    edited = "What is the capital of Italy? Is <b> a tag?"
    chat.page.locator("#corral-chat textarea").fill(edited)
    chat.press("Submit")
    chat.until("() => document.querySelectorAll('#corral-chat .user-row').length === 1")
    chat.wait()
    assert len(chat.questions()) == len(chat.answers()) == 1
    assert chat.questions()[0].replace("\u2060", "") == edited
    assert answer_of(server, edited).split("\n")[0] in chat.answers()[0]

    chat.press("Undo")
    chat.until("() => document.querySelectorAll('#corral-chat .user-row').length === 0")
    assert chat.page.locator("#corral-box textarea").input_value() == edited


def test_the_pages_tools_run_and_a_persons_own_are_asked_for(server: PageServer, open_page: OpenPage) -> None:
    chat = open_page(server)
    chat.open_settings()
    chat.page.locator("#corral-tools").get_by_label("Calculator").check()
    chat.page.get_by_label("It must call one").check()
    chat.page.get_by_label("Longest answer").fill("60")
    chat.ask("Use the calculator: what is 12 * 7?")
    chat.see("🔧 calculator(")
    assert "→" in chat.boxes()[0]

    chat.page.locator("#corral-tools").get_by_label("Calculator").uncheck()
    chat.page.locator("#corral-custom-tools textarea").fill(json.dumps([WEATHER]))
    chat.ask("What is the weather in Oslo?")
    chat.see("get_weather was called with", "#corral-results")
    chat.reload()
    chat.see("get_weather was called with", "#corral-results")
    chat.page.locator("#corral-result textarea").fill('{"sky": "clear"}')
    chat.click("#corral-give")
    chat.see('→ {"sky": "clear"}')
    chat.wait()
    assert not chat.page.locator("#corral-results").is_visible()


def test_conversations_stay_in_the_browser(server: PageServer, open_page: OpenPage) -> None:
    chat = open_page(server)
    chat.open_settings()
    chat.page.locator("#corral-system textarea").fill("You are brief.")
    chat.ask(FRANCE)
    before = chat.answers()
    chat.reload()
    wait_until(lambda: chat.answers() == before)
    assert chat.questions() == [FRANCE]
    chat.open_settings()
    assert chat.page.locator("#corral-system textarea").input_value() == "You are brief."

    chat.page.locator("#corral-title input").fill("About France")
    chat.page.locator("#corral-title input").press("Enter")
    chat.see("About France", "#corral-chats")
    chat.page.keyboard.press("Control+Shift+O")
    chat.until("() => document.querySelectorAll('#corral-chat .user-row').length === 0")
    chat.send(STORY)
    chat.until("() => document.querySelector('#corral-chat .bot-row')?.innerText.length > 60")
    chat.see("About France", "#corral-chats")
    chat.page.locator("#corral-chats label").get_by_text("About France").click()
    wait_until(lambda: server.is_idle)
    chat.wait()
    wait_until(lambda: chat.answers() == before)
    assert len(chat.chats()) == 2
    chat.page.locator("#corral-chats label").get_by_text("Write a long story").click()
    chat.see("stopped")

    chat.page.once("dialog", lambda dialog: dialog.accept())
    chat.click("#corral-delete")
    chat.until("() => document.querySelectorAll('#corral-chats label').length === 1")
    assert chat.chats() == ["About France"]


def test_an_answer_survives_a_reload_in_its_midst(server: PageServer, open_page: OpenPage) -> None:
    chat = open_page(server)
    chat.send(STORY)
    chat.until(
        "() => Object.keys(localStorage).some(key => key.startsWith('corral.chat.')"
        " && (JSON.parse(localStorage[key]).messages[1]?.content || '').length > 20)"
    )
    chat.reload()
    chat.see("stopped")
    wait_until(lambda: server.is_idle)


def test_a_closed_page_frees_the_engine(server: PageServer, open_page: OpenPage) -> None:
    chat = open_page(server)
    chat.send(STORY)
    chat.until("() => document.querySelector('#corral-chat .bot-row')?.innerText.length > 20")
    chat.page.close()
    wait_until(lambda: server.is_idle)


def test_people_are_answered_side_by_side(server: PageServer, open_page: OpenPage) -> None:
    one, other = open_page(server), open_page(server)
    one.send(STORY)
    other.ask(FRANCE)
    assert "Paris" in other.answers()[0]
    assert one.page.locator("#corral-box .stop-button").is_visible()
    one.click("#corral-box .stop-button")
    one.wait()
    assert one.questions() == [STORY]


def test_a_long_answer_does_not_pull_the_reader_down(server: PageServer, open_page: OpenPage) -> None:
    chat = open_page(server, height=420)
    chat.send(STORY)
    chat.until(
        "() => { const log = document.querySelector('#corral-chat .bubble-wrap');"
        " return log.scrollHeight - log.clientHeight > 150; }"
    )
    chat.page.mouse.move(700, 200)
    chat.page.mouse.wheel(0, -4000)
    chat.until("() => document.querySelector('#corral-chat .bubble-wrap').scrollTop === 0")
    length = len(chat.answers()[-1])
    chat.until(
        "(length) => [...document.querySelectorAll('#corral-chat .bot-row')].at(-1).innerText.length"
        " > length + 80",
        length,
    )
    assert chat.page.locator("#corral-chat .bubble-wrap").evaluate("log => log.scrollTop") == 0
    chat.click("#corral-box .stop-button")
    chat.wait()


def test_what_the_server_refuses_is_said_in_words_and_nothing_is_lost(
    server: PageServer, open_page: OpenPage
) -> None:
    chat = open_page(server)
    chat.ask("word " * 12_000)
    chat.see("⚠️")
    assert "context" in chat.answers()[0] or "tokens" in chat.answers()[0]
    chat.open_settings()
    chat.page.locator("#corral-custom-tools textarea").fill("{")
    chat.ask(FRANCE)
    chat.see("Your own tools are not JSON")
    chat.page.locator("#corral-custom-tools textarea").fill("")
    chat.press("Undo")
    chat.until("() => document.querySelectorAll('#corral-chat .user-row').length === 1")
    chat.reload()
    chat.see("⚠️")


def test_export_and_import(server: PageServer, open_page: OpenPage, tmp_path: Path) -> None:
    chat = open_page(server)
    chat.ask(FRANCE)
    chat.page.locator("#corral-files button").first.click()
    files = {}
    for kind in ("markdown", "json", "all"):
        with chat.page.expect_download() as download:
            chat.click(f"#corral-{kind}")
        files[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[kind])
    assert "Paris" in files["markdown"].read_text()
    kept = json.loads(files["json"].read_text())
    assert [message["role"] for message in kept["messages"]] == ["user", "assistant"]
    assert json.loads(files["all"].read_text())[0]["id"] == kept["id"]

    chat.page.evaluate("localStorage.clear()")
    other = open_page(server)
    assert not other.chats()
    other.page.locator("#corral-files button").first.click()
    for path, text, within in (
        (files["markdown"], "The file is not JSON", ".toast-wrap"),
        (files["json"], "Paris", "#corral-chat"),
    ):
        with other.page.expect_file_chooser() as chooser:
            other.click("#corral-import")
        chooser.value.set_files(path)
        other.see(text, within)


def test_a_server_with_keys_asks_for_one_and_keeps_it_for_the_tab_alone(
    locked_server: PageServer, open_page: OpenPage
) -> None:
    chat = open_page(locked_server)
    chat.see("enter yours under Settings", "#corral-notice")
    chat.ask("Hello")
    chat.see("Enter your API key under Settings")
    chat.open_settings()
    for key in ("wrong", KEY):
        chat.page.locator("#corral-key input").fill(key)
        chat.page.locator("#corral-key input").press("Enter")
    chat.until("() => document.querySelector('#corral-model input').value === 'small'")
    chat.page.get_by_label("Longest answer").fill("8")
    chat.press("Retry")
    chat.see("first token")
    assert "sesame" not in chat.page.evaluate("JSON.stringify(localStorage)")
    chat.reload()
    assert chat.page.locator("#corral-model input").input_value() == "small"


def test_a_narrow_window_has_room_for_the_chat(server: PageServer, open_page: OpenPage) -> None:
    chat = open_page(server, width=390, height=844)
    chat.ask(FRANCE)
    assert chat.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not chat.page.locator(".sidebar.open").count()
    chat.click("#corral-chats-bar .toggle-button")
    chat.click("#corral-new")
    chat.until("() => !document.querySelector('.sidebar.open')")


def test_dark_follows_the_system_until_it_is_switched(server: PageServer, open_page: OpenPage) -> None:
    chat = open_page(server, color_scheme="dark")
    dark = "document.body.classList.contains('dark')"
    assert chat.page.evaluate(dark)
    chat.click("#corral-dark")
    chat.reload()
    assert not chat.page.evaluate(dark)
