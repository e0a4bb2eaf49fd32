"""Prints what Corral needs, one requirement in each line.

An image can install them in a layer that outlives changes of the code:

    python dependencies.py pyproject.toml [EXTRA,EXTRA...]
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def dependencies(pyproject: Path, extras: list[str]) -> list[str]:
    """The requirements of a project and of some of its extras.

    Raises:
        SystemExit: there is no such extra; the message names those that there are.
    """
    project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
    optional: dict[str, list[str]] = project["optional-dependencies"]
    for extra in extras:
        if extra not in optional:
            raise SystemExit(f"{pyproject} has no extra {extra!r}; there are {', '.join(optional)}")
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    named = [extra for argument in sys.argv[2:] for extra in argument.split(",") if extra]
    sys.stdout.write("\n".join(dependencies(Path(sys.argv[1]), named)) + "\n")
