"""A process of the launcher's tests; it needs no PyTorch. Arguments: what to do, and a folder."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from corral.scale.launched import note_lost, watch_launcher

RANK = int(os.environ["RANK"])


def main() -> int:
    what, folder = sys.argv[1], Path(sys.argv[2])
    watch_launcher()
    (folder / f"pid-{RANK}").write_text(str(os.getpid()))
    if what == "say":
        sys.stdout.write(" ".join([os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")]))
        (folder / f"arguments-{RANK}").write_text(" ".join(sys.argv[1:]))
        return 0
    if what == "all fail":
        return fail("row 7 has no messages")
    if what == "second fails":
        return fail("row 7 has no messages") if RANK == 1 else lose()
    if what == "second is killed":
        if RANK == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return lose()
    if what == "second fails, first hangs":
        return fail("row 7 has no messages") if RANK == 1 else hang()
    assert what == "stop when asked"
    signal.signal(signal.SIGTERM, lambda number, _: stop(folder, number))
    (folder / f"ready-{RANK}").touch()
    return hang()


def fail(text: str) -> int:
    sys.stderr.write(f"corral: {text}\n")
    return 1


def lose() -> int:
    """What happens to a process whose neighbour is gone."""
    time.sleep(0.3)
    note_lost()
    return fail("another process is gone")


def hang() -> int:
    time.sleep(60)
    return 0


def stop(folder: Path, number: int) -> None:
    time.sleep(0.2 * RANK)
    (folder / f"stopped-{RANK}").touch()
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
