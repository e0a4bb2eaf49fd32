"""A Hub on the loopback: a real HTTP server that speaks the part of the Hub's interface used to fetch models
and data sets.

It answers what `huggingface_hub` asks: model info (with `blobs=true`), the file tree, and `resolve/` with
HEAD, GET and byte ranges. As on the real Hub, small files are served at once, while large ones (git LFS) are
redirected to a second origin and carry their SHA-256 in `X-Linked-Etag`.

    with FakeHub() as hub:
        hub.add_repo("org/tiny", {"config.json": b"{}", "model.safetensors": weights})
        ...  # HF_ENDPOINT=hub.endpoint
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

_LFS_SUFFIXES = (".safetensors", ".gguf", ".pth", ".bin", ".parquet")
_API = re.compile(r"/api/(?:models|datasets)/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?")
_TREE = re.compile(r"/api/(?:models|datasets)/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/.*)?")
_FILE = re.compile(r"/(?:datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_BLOB = re.compile(r"/blob/(?P<sha>[0-9a-f]{64})")


@dataclass
class Repo:
    """A repository: for each revision (branch, tag or commit) its files."""

    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit_of(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class FakeHub:
    """A running fake Hub; use it as a context manager. The knobs may be turned while it runs.

    `tokens` are the access tokens that are known, `allowed` those that may read gated and private
    repositories. `cuts[path]` holds, for each of the next GETs of that file, after how many bytes the
    connection breaks. `corrupt` names files that arrive with their first byte flipped, `unavailable` files
    that are listed but missing; `status` answers everything with an error, `not_a_hub` with a page; `hang`
    accepts requests and never answers. `log` lists the requests as `METHOD path`, `ranges` the byte ranges.
    """

    tokens: set[str] = field(default_factory=lambda: {"good", "plain"})
    allowed: set[str] = field(default_factory=lambda: {"good"})
    cuts: dict[str, list[int]] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    unavailable: set[str] = field(default_factory=set)
    status: int | None = None
    not_a_hub: bool = False
    hang: bool = False
    log: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    repos: dict[str, Repo] = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)

    def add_repo(
        self,
        repo_id: str,
        files: dict[str, bytes],
        revision: str = "main",
        *,
        gated: bool = False,
        private: bool = False,
    ) -> str:
        """Publish `files` as the newest state of a branch or tag, and return its commit hash."""
        repo = self.repos.setdefault(repo_id, Repo())
        repo.gated, repo.private = gated, private
        content = b"".join(name.encode() + hashlib.sha256(files[name]).digest() for name in sorted(files))
        commit = hashlib.sha1(content + revision.encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.refs[revision] = commit
        return commit

    def path_of(self, sha256: str) -> tuple[str, bytes] | None:
        """The file with this content, for the second origin."""
        for repo in self.repos.values():
            for files in repo.commits.values():
                for path, content in files.items():
                    if hashlib.sha256(content).hexdigest() == sha256:
                        return path, content
        return None

    def gets(self, path: str) -> int:
        """How often the content of a file was asked for."""
        return self.log.count(f"GET {path}")

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_address[1]}"

    @property
    def storage(self) -> str:
        """The second origin, where large files are."""
        return f"http://127.0.0.1:{self._servers[1].server_address[1]}"

    def __enter__(self) -> FakeHub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        self._threads = [threading.Thread(target=s.serve_forever, args=(0.02,)) for s in self._servers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def log_message(self, format: str, *args: object) -> None:
        """Tests read `hub.log`; standard error stays clean."""

    def _route(self) -> None:
        url = urlsplit(self.path)
        self.hub.log.append(f"{self.command} {unquote(url.path)}")
        if self.hub.hang:
            self.hub.released.wait()
            self.close_connection = True
        elif self.hub.status is not None:
            self._refuse(self.hub.status)
        elif self.hub.not_a_hub:
            self._send(b"<html>Welcome to this hotel's network</html>", {"Content-Type": "text/html"})
        elif match := _BLOB.fullmatch(url.path):
            self._blob(match["sha"])
        elif match := _TREE.fullmatch(url.path):
            self._tree(match["repo"], unquote(match["revision"]))
        elif match := _API.fullmatch(url.path):
            blobs = parse_qs(url.query).get("blobs") == ["true"]
            self._info(match["repo"], unquote(match["revision"] or "main"), blobs=blobs)
        elif match := _FILE.fullmatch(url.path):
            self._resolve(match["repo"], unquote(match["revision"]), unquote(match["path"]))
        else:
            self._refuse(404)

    def _find(self, repo_id: str, revision: str, *, content: bool) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files, or None after refusing in the Hub's manner."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            self._refuse(401, message="Invalid credentials in Authorization header")
            return None
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and token not in self.hub.allowed):
            # Without a token the Hub does not tell a private repository from a missing one.
            self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        if repo.gated and content and token not in self.hub.allowed:
            self._refuse(403 if token else 401, "GatedRepo", f"Access to model {repo_id} is restricted.")
            return None
        commit = repo.commit_of(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return commit, repo.commits[commit]

    def _info(self, repo_id: str, revision: str, *, blobs: bool) -> None:
        if (found := self._find(repo_id, revision, content=False)) is None:
            return
        commit, files = found
        siblings = [
            _sibling(path, content) if blobs else {"rfilename": path} for path, content in files.items()
        ]
        self._json({"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings, "tags": []})

    def _tree(self, repo_id: str, revision: str) -> None:
        if (found := self._find(repo_id, revision, content=False)) is not None:
            self._json([_tree_entry(path, content) for path, content in found[1].items()])

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        if (found := self._find(repo_id, revision, content=True)) is None:
            return
        commit, files = found
        headers = {"X-Repo-Commit": commit}
        if path not in files or path in self.hub.unavailable:
            self._refuse(404, "EntryNotFound", "Entry not found", headers)
            return
        content = files[path]
        if not _is_lfs(path):
            self._content(path, content, {**headers, "ETag": f'"{_git_sha1(content)}"'})
            return
        sha = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-Etag": f'"{sha}"', "X-Linked-Size": str(len(content))}
        self._send(b"", {**headers, "Location": f"{self.hub.storage}/blob/{sha}"}, status=302)

    def _blob(self, sha: str) -> None:
        if (found := self.hub.path_of(sha)) is None:
            self._refuse(404)
        else:
            self._content(*found, {"ETag": f'"{sha}"'})

    def _content(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        if self.command == "GET":
            self.hub.log.append(f"GET {path}")
        if path in self.hub.corrupt:
            content = bytes([content[0] ^ 0xFF]) + content[1:]
        start, status = 0, 200
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(wanted)
            start, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        cuts = self.hub.cuts.get(path)
        cut = cuts.pop(0) if cuts and self.command == "GET" else None
        self._send(content[start:], headers, status, cut)

    def _json(self, value: object) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(
        self, status: int, code: str = "", message: str = "", headers: dict[str, str] | None = None
    ) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(b"", {**(headers or {}), **{k: v for k, v in named.items() if v}}, status)

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200, cut: int | None = None) -> None:
        """Answer; with `cut`, promise the whole body and break the connection after that many bytes."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True


def _is_lfs(path: str) -> bool:
    return path.endswith(_LFS_SUFFIXES)


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _lfs(content: bytes) -> dict[str, object]:
    sha = hashlib.sha256(content).hexdigest()
    return {"oid": sha, "sha256": sha, "size": len(content), "pointerSize": 134}


def _sibling(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"rfilename": path, "size": len(content), "blobId": _git_sha1(content)}
    return {**entry, "lfs": _lfs(content)} if _is_lfs(path) else entry


def _tree_entry(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": _git_sha1(content)}
    return {**entry, "lfs": _lfs(content)} if _is_lfs(path) else entry
