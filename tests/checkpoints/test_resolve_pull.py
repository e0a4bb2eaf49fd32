"""`corral pull`: the path on standard output, everything else on standard error."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from corral.cli.progress import TerminalReport
from corral.cli.pull import pull
from corral.errors import ResolveError
from tests.checkpoints.fake_hub import FakeHub


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(rich_markup_mode="markdown")
    app.command()(pull)
    return app


def test_pull_prints_the_path_and_nothing_else_on_standard_output(
    hub: FakeHub, tiny: dict[str, bytes], app: typer.Typer
) -> None:
    commit = hub.add_repo("org/tiny", tiny)
    result = CliRunner().invoke(app, ["org/tiny"], catch_exceptions=False)
    assert Path(result.stdout.rstrip("\n")).name == commit
    assert result.stdout.count("\n") == 1
    assert result.stderr == f"Downloading org/tiny from {hub.endpoint}: 5 files, 102.5 kB.\n"


def test_pull_fetches_the_newest_state(hub: FakeHub, tiny: dict[str, bytes], app: typer.Typer) -> None:
    hub.add_repo("org/tiny", tiny)
    CliRunner().invoke(app, ["org/tiny"], catch_exceptions=False)
    newer = hub.add_repo("org/tiny", {**tiny, "config.json": b'{"newer": true}'})
    result = CliRunner().invoke(app, ["org/tiny"], catch_exceptions=False)
    assert result.stdout.rstrip("\n").endswith(newer)


def test_pull_fails_with_the_sentence_of_the_resolver(hub: FakeHub, app: typer.Typer) -> None:
    del hub
    with pytest.raises(ResolveError, match="no model 'org/nowhere'"):
        CliRunner().invoke(app, ["org/nowhere"], catch_exceptions=False)


def test_pull_explains_itself_with_examples(app: typer.Typer) -> None:
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert "corral pull llama-3.2-1b-instruct" in shown
    assert "HF_TOKEN" in shown


def test_bars_are_drawn_on_a_terminal_only() -> None:
    for is_terminal in (True, False):
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=is_terminal, width=100)
        with TerminalReport(console) as report:
            report.notice("Downloading [org/tiny].")
            report.progress("org/tiny", 50_000, 100_000)
            report.progress("org/tiny", 100_000, 100_000)
        shown = screen.getvalue()
        assert "Downloading [org/tiny]." in shown
        assert ("100.0/100.0 kB" in shown) == is_terminal
        assert "\x1b[?25h" in shown or not is_terminal  # the cursor is given back


def test_importing_the_verb_imports_neither_torch_nor_the_hub_client() -> None:
    code = (
        "import sys, corral.cli.pull; print({'torch', 'huggingface_hub', 'rich.progress'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "set()"
