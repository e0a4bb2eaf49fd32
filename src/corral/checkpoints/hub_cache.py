"""The Hub's cache folder, as far as it decides whether a model is there whole.

The layout is that of `huggingface_hub` (`models--org--name/{blobs,refs,snapshots}`), so that every program
shares the files. Beside it lies a record of each download, `.corral/<commit>.json`: which files make the
model, and whether all of them arrived and were checked. While the record says no, the snapshot counts as
incomplete, whatever its folder holds; and a branch is pointed at a commit only when all of it is there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from corral.checkpoints.cache import sweep, whole_file
from corral.checkpoints.names import HubName
from corral.checkpoints.snapshot import Choice, RemoteFile, config_in, gguf_parts, whole_model


@dataclass(frozen=True)
class HubCache:
    """The cache at `folder`; its questions never touch the network."""

    folder: Path

    def find(self, wanted: HubName) -> Path | None:
        """The local path of `wanted` if it is there whole: a folder, or a GGUF file."""
        commit = self.commit_of(wanted)
        return self.find_at(wanted, commit) if commit else None

    def find_at(self, wanted: HubName, commit: str) -> Path | None:
        """The same, at a known commit."""
        snapshot = self.snapshot(wanted, commit)
        record = self._record(wanted, commit)
        if record.exists():
            return self._recorded(record, snapshot)
        if wanted.filename is not None:
            parts = [snapshot / part for part in gguf_parts(wanted.filename)]
            return parts[0] if all(part.exists() for part in parts) else None
        return snapshot if whole_model(snapshot) else None

    def find_config(self, wanted: HubName) -> Path | None:
        """The cached file that describes the network; the weights need not be there."""
        commit = self.commit_of(wanted)
        return self.find_config_at(wanted, commit) if commit else None

    def find_config_at(self, wanted: HubName, commit: str) -> Path | None:
        """The same, at a known commit."""
        if wanted.filename is not None:
            return self.find_at(wanted, commit)
        snapshot = self.snapshot(wanted, commit)
        return config_in(snapshot) if snapshot.is_dir() else None

    def commit_of(self, wanted: HubName) -> str | None:
        """The commit that the wanted branch or tag had when it was last fetched."""
        if wanted.commit:
            return wanted.commit
        ref = self._storage(wanted) / "refs" / wanted.branch
        return ref.read_text().strip() if ref.is_file() else None

    def snapshot(self, wanted: HubName, commit: str) -> Path:
        return self._storage(wanted) / "snapshots" / commit

    def missing(self, wanted: HubName, commit: str, choice: Choice) -> list[RemoteFile]:
        """The chosen files that have to be downloaded: those that no commit has brought yet."""
        snapshot, blobs = self.snapshot(wanted, commit), self._storage(wanted) / "blobs"
        missing = {}  # by content: two equal files are one download
        for file in choice.files:
            blob = blobs / (file.sha256 or file.git_sha1 or quote(file.path, safe=""))
            if not (snapshot / file.path).exists() and not blob.exists():
                missing[blob] = file
        return list(missing.values())

    def begin(self, wanted: HubName, commit: str, choice: Choice) -> None:
        """Note that a download begins; remove what killed downloads left behind more than a day ago."""
        sweep((self._storage(wanted) / "blobs").glob("*.incomplete"))
        self._write_record(wanted, commit, choice, verified=False)

    def finish(self, wanted: HubName, commit: str, choice: Choice) -> Path:
        """Note that every file arrived and was checked, and return what to open."""
        self._write_record(wanted, commit, choice, verified=True)
        self.point(wanted, commit)
        return self.snapshot(wanted, commit) / choice.target

    def point(self, wanted: HubName, commit: str) -> None:
        """Let the branch or tag mean this commit from now on."""
        ref = self._storage(wanted) / "refs" / wanted.branch
        if wanted.branch != commit and self.commit_of(wanted) != commit:
            with whole_file(ref) as file:
                file.write(commit.encode())

    @staticmethod
    def discard(pointer: Path) -> None:
        """Remove a file of a snapshot together with the content that it points to."""
        content = pointer.resolve()
        pointer.unlink(missing_ok=True)
        content.unlink(missing_ok=True)

    def _storage(self, wanted: HubName) -> Path:
        return self.folder / f"models--{wanted.repo_id.replace('/', '--')}"

    def _record(self, wanted: HubName, commit: str) -> Path:
        suffix = f".{quote(wanted.filename, safe='')}" if wanted.filename else ""
        return self._storage(wanted) / ".corral" / f"{commit}{suffix}.json"

    def _write_record(self, wanted: HubName, commit: str, choice: Choice, *, verified: bool) -> None:
        files = [file.path for file in choice.files]
        record = {"verified": verified, "target": choice.target, "files": files}
        with whole_file(self._record(wanted, commit)) as out:
            out.write(json.dumps(record, indent=1).encode())

    @staticmethod
    def _recorded(record: Path, snapshot: Path) -> Path | None:
        noted = json.loads(record.read_bytes())
        there = all((snapshot / path).exists() for path in noted["files"])
        return snapshot / noted["target"] if noted["verified"] and there else None
