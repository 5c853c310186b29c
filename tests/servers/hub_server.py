"""A small Hub on 127.0.0.1: repositories with branches, commits of regular and of large files.

Speaks what `huggingface_hub` asks of the Hub when it uploads or downloads, and remembers every request. In a test:

    with HubServer() as hub: ... hub.endpoint ... hub.repositories["dataset/me/pairs"].branches["main"]
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote

from local_server import Answer, LocalServer

LARGE_SUFFIXES = (".parquet", ".png", ".safetensors")
_API = re.compile(r"/api/(?P<kind>dataset|model)s/(?P<name>[^/]+/[^/]+)(?P<rest>/.*)?")
_FILE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<commit>[^/]+)/(?P<path>.+)")
_BATCH = re.compile(r"/(?:datasets/)?[^/]+/[^/]+\.git/info/lfs/objects/batch")


@dataclass
class Repository:
    """Files by branch, and whether only its owner may read it."""

    private: bool = True
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list[str])
    snapshots: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])


class Asked(NamedTuple):
    """A request: method, path, authorization and the bytes that came with it."""

    method: str
    path: str
    authorization: str
    body: bytes


class HubServer(LocalServer):
    """Serves until the `with` block ends."""

    def __init__(self, token: str = "") -> None:
        super().__init__()
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[Asked] = []

    def respond(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        self.asked.append(Asked(method, target, headers.get("authorization", ""), body))
        return self.answer(self.asked[-1])

    def answer(self, asked: Asked) -> Answer:
        path = asked.path.partition("?")[0]
        if path.startswith("/large/"):
            return self._store_large(path.removeprefix("/large/"), asked.body)
        if self.token and asked.authorization != f"Bearer {self.token}":
            return Answer(401, {"error": "Invalid username or password."})
        if path == "/api/validate-yaml":
            return self._validate(json.loads(asked.body))
        if path == "/api/repos/create":
            return self._create(json.loads(asked.body))
        if _BATCH.fullmatch(path):
            return self._batch(json.loads(asked.body))
        if (file := _FILE.fullmatch(path)) is not None:
            return self._download(file)
        found = _API.fullmatch(path)
        if found is None:
            return Answer(404, {"error": f"no such path: {path}"})
        return self._in_repository(f"{found['kind']}/{found['name']}", found["rest"] or "", asked)

    def _validate(self, asked: Mapping[str, Any]) -> Answer:
        head = asked["content"].split("---\n")
        fault = [] if len(head) > 2 and head[0] == "" else [{"message": "no front matter"}]
        return Answer(400 if fault else 200, {"errors": fault, "warnings": []})

    def _create(self, asked: Mapping[str, Any]) -> Answer:
        name = f"{asked.get('type', 'model')}/{asked['organization']}/{asked['name']}"
        self.repositories[name] = Repository(asked.get("visibility") == "private")
        return Answer(200, {"url": self._page(name)})

    def _page(self, name: str) -> str:
        kind, _, repository = name.partition("/")
        return f"{self.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repository}"

    def _batch(self, asked: Mapping[str, Any]) -> Answer:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.endpoint}/large/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        return Answer(200, {"transfer": "basic", "objects": objects})

    def _store_large(self, oid: str, content: bytes) -> Answer:
        if hashlib.sha256(content).hexdigest() != oid:
            return Answer(400, {"error": "other bytes"})
        self.large[oid] = content
        return Answer(200, {})

    def _download(self, file: re.Match[str]) -> Answer:
        repository = self.repositories[f"{'dataset' if file['kind'] else 'model'}/{file['name']}"]
        content = repository.snapshots[file["commit"]][unquote(file["path"])]
        etag = hashlib.sha256(content).hexdigest()
        return Answer(200, content, {"X-Repo-Commit": file["commit"], "ETag": f'"{etag}"'})

    def _in_repository(self, name: str, rest: str, asked: Asked) -> Answer:
        repository = self.repositories.get(name)
        if repository is None:
            return Answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        verb, _, branch = unquote(rest).strip("/").partition("/")
        match (asked.method, verb):
            case ("GET", ""):
                return Answer(200, {"id": name.partition("/")[2], "private": repository.private})
            case ("GET", "revision"):
                commit = _commit_of(repository.branches[branch])
                repository.snapshots[commit] = dict(repository.branches[branch])
                return Answer(200, {"id": name.partition("/")[2], "sha": commit})
            case ("GET", "tree"):
                files = repository.snapshots.get(branch) or repository.branches[branch]
                return Answer(200, [_entry(path, content) for path, content in files.items()])
            case ("POST", "branch"):
                repository.branches.setdefault(branch, dict(repository.branches["main"]))
                return Answer(200, {})
            case ("POST", "preupload"):
                paths = [each["path"] for each in json.loads(asked.body)["files"]]
                return Answer(200, {"files": [_mode(path) for path in paths]})
            case ("POST", "commit"):
                return self._commit(name, repository, branch, asked.body)
            case _:
                return Answer(404, {"error": f"no such path: {rest}"})

    def _commit(self, name: str, repository: Repository, branch: str, body: bytes) -> Answer:
        files = repository.branches[branch]
        for line in body.decode().splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    repository.commits.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = hashlib.sha256(body).hexdigest()[:40]
        url = f"{self._page(name)}/commit/{oid}"
        return Answer(200, {"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})


def _commit_of(files: Mapping[str, bytes]) -> str:
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:40]


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha256(content).hexdigest()}


def _mode(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith(LARGE_SUFFIXES) else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False}
