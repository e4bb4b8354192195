"""A stand-in for the Hugging Face Hub on this machine: the requests that push and load make of it.

It holds repositories in memory and answers as the Hub does (huggingface_hub's `hf_api.py`, `lfs.py`
and `file_download.py` name the addresses), large files by Git LFS, as without `hf_xet`.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest
import yaml

TOKEN = "hf_stand_in"


class StandIn(ThreadingHTTPServer):
    """The server; `repos` has each repository's private flag and revisions of its files.

    Attributes:
        repos: Name -> {"private": bool, "commits": {oid: {path: bytes}}}, the last commit is main.
        uploads: Large files that came before their commit, by SHA-256.
        requests: Method and path of each request.
        claimed_size: Size that the next downloads are said to have, or None for the true one.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.uploads, self.requests = {}, {}, []
        self.claimed_size = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repo: str, files: dict) -> str:
        commits = self.repos[repo]["commits"]
        before = list(commits.values())[-1] if commits else {}
        oid = hashlib.sha1(f"{repo}{len(commits)}".encode()).hexdigest()
        commits[oid] = {**before, **files}
        return oid


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, content=b"", **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")  # a server that has ended answers nobody
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def read(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self):
        self.server.requests.append((self.command, self.path))
        path = unquote(self.path).strip("/")
        if path.startswith("api/models/"):
            repo = self.server.repos.get(path.removeprefix("api/models/").partition("/revision")[0])
            if repo is None:
                return self.answer(401, X_Error_Code="RepoNotFound")
            return self.answer(200, {"id": path, "private": repo["private"]})
        name, _, rest = path.partition("/resolve/")
        revision, _, file = rest.partition("/")
        repo = self.server.repos.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo["private"] and not allowed):
            return self.answer(401 if repo is None else 404, X_Error_Code="RepoNotFound")
        commits = repo["commits"]
        oid = list(commits)[-1] if revision == "main" else revision
        if oid not in commits:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        if file not in commits[oid]:
            return self.answer(404, X_Error_Code="EntryNotFound")
        content = commits[oid][file]
        etag = hashlib.sha256(content).hexdigest()
        claimed = {"Content_Length": self.server.claimed_size} if self.server.claimed_size else {}
        return self.answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=oid, **claimed)

    do_GET = do_HEAD  # noqa: N815

    def do_PUT(self):
        content = self.read()
        self.server.requests.append((self.command, self.path))
        self.server.uploads[hashlib.sha256(content).hexdigest()] = content
        self.answer(200)

    def do_POST(self):
        body = self.read()
        self.server.requests.append((self.command, self.path))
        path = unquote(self.path).strip("/")
        if path == "api/validate-yaml":
            head = json.loads(body)["content"].split("---\n")[1]
            wrong = [] if isinstance(yaml.safe_load(head), dict) else [{"message": "no mapping"}]
            return self.answer(400 if wrong else 200, {"errors": wrong, "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            status = 409 if name in self.server.repos else 200
            private = asked.get("private", False) or asked.get("visibility") == "private"
            new = {"private": private, "commits": {}}
            self.server.repos.setdefault(name, new)
            return self.answer(status, {"url": f"{self.server.address}/{name}"})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for entry in objects:
                href = f"{self.server.address}/upload/{entry['oid']}"
                entry["actions"] = {"upload": {"href": href, "header": {}}}
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if "/preupload/" in path:
            modes = {True: "lfs", False: "regular"}
            files = [
                {
                    "path": file["path"],
                    "uploadMode": modes[file["path"].endswith(".safetensors")],
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        repo = path.removeprefix("api/models/").partition("/commit/")[0]
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
        oid = self.server.commit(repo, files)
        url = f"{self.server.address}/{repo}/commit/{oid}"
        return self.answer(200, {"success": True, "commitUrl": url, "commitOid": oid})


@contextmanager
def running_hub(cache, *, token: str | None = TOKEN) -> Iterator[StandIn]:
    """Run the stand-in, with huggingface_hub turned to it, an empty cache and an account."""
    from huggingface_hub import constants

    with StandIn() as server, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        patch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no_token"))
        patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        if token:
            patch.setenv("HF_TOKEN", token)
        else:
            patch.delenv("HF_TOKEN", raising=False)
        yield server
        server.shutdown()
