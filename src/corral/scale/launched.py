"""What a process and the launcher that started it know of each other.

The launcher holds the other end of the process's standard input, and names a folder for notes.
"""

from __future__ import annotations

import os
from pathlib import Path
from threading import Thread

NOTES = "CORRAL_LAUNCHER_NOTES"
"""The variable that names the folder."""


def watch_launcher() -> None:
    """Ends this process when its launcher is gone, even by SIGKILL: else it would go on, alone and unseen."""
    if NOTES in os.environ:
        Thread(target=_end_with_launcher, name="launcher", daemon=True).start()


def note_lost() -> None:
    """Notes that this process fails only because another did."""
    folder = os.environ.get(NOTES)
    if folder is not None and Path(folder).is_dir():
        lost_note(Path(folder), int(os.environ.get("RANK", "0"))).touch()


def lost_note(folder: Path, rank: int) -> Path:
    """The file whose presence is that note."""
    return folder / f"lost-{rank}"


def _end_with_launcher() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)
