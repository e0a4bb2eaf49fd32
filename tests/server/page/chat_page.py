"""The page as a person uses it, in headless Chromium."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WAIT_MS = 60_000


@dataclass(frozen=True)
class ChatPage:
    """An open page, by what is seen of it and done with it. `page` is Playwright's."""

    page: Any

    def ask(self, text: str) -> None:
        """Send a message, and wait for the end of the answer."""
        self.send(text)
        self.wait()

    def send(self, text: str) -> None:
        """Send a message, and see that the page takes it up."""
        box = self.page.locator("#corral-box textarea")
        box.fill(text)
        box.press("Enter")
        self.until("() => document.querySelector('#corral-box textarea').value === ''")

    def wait(self) -> None:
        """Wait until no answer is being made: the page's parts do not all change in the same moment."""
        self.page.evaluate("window.quietSince = 0")
        self.until(
            "() => { const quiet = document.querySelector('#corral-box .submit-button')"
            " && ![...document.querySelectorAll('#corral-chat .bot-row')]"
            ".some(row => row.innerText.trim() === '…');"
            " window.quietSince = quiet ? window.quietSince || performance.now() : 0;"
            " return quiet && performance.now() - window.quietSince > 300; }"
        )

    def see(self, text: str, within: str = "#corral-chat") -> None:
        """Wait until a text is there."""
        self.page.locator(within).get_by_text(text).first.wait_for(timeout=WAIT_MS)

    def press(self, label: str) -> None:
        """Press the last button of a label in the chat."""
        self.page.locator("#corral-chat").get_by_label(label, exact=True).last.click()

    def click(self, selector: str) -> None:
        """Click an element."""
        self.page.locator(selector).click()

    def open_settings(self) -> None:
        """Open the settings, if they are not."""
        if not self.page.locator("#corral-settings-bar.open").count():
            self.click("#corral-settings-bar .toggle-button")
            self.page.locator("#corral-settings-bar.open").wait_for()

    def questions(self) -> list[str]:
        """What was asked."""
        return [str(text).strip() for text in self.page.locator("#corral-chat .user-row").all_inner_texts()]

    def answers(self) -> list[str]:
        """The answers, with the calls and lines in them."""
        return [str(text).strip() for text in self.page.locator("#corral-chat .bot-row").all_inner_texts()]

    def boxes(self) -> list[str]:
        """The titles of calls, and the lines on how answers were made."""
        return [
            str(text).strip()
            for text in self.page.locator("#corral-chat .thought-group .title").all_inner_texts()
        ]

    def chats(self) -> list[str]:
        """The titles in the list of conversations."""
        return [str(text).strip() for text in self.page.locator("#corral-chats label").all_inner_texts()]

    def until(self, expression: str, argument: Any = None) -> None:
        """Wait until a JavaScript function gives true."""
        self.page.wait_for_function(expression, arg=argument, timeout=WAIT_MS)

    def reload(self) -> None:
        """Load the page again."""
        self.page.reload()
        self.loaded()

    def loaded(self) -> None:
        """Wait until the page has asked the server for its models."""
        self.until(
            "() => document.querySelector('#corral-model input')?.value"
            " || document.querySelector('#corral-notice')?.offsetHeight"
        )
