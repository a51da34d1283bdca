"""A small Hugging Face Hub on loopback, for the unmodified `huggingface_hub` client.

    with HubServer(folder) as hub:
        subprocess.run([...], env={**os.environ, **hub.env})

It answers what the client, `datasets`, `transformers` and `timm` ask of a model, dataset or Space
repository: create, commit (uploads over LFS and over Xet), list, resolve, branches. Downloads are
plain HTTP, as for a repository without Xet. Everyone may read; writing takes the one token.
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from hub_store import HubError, HubStore, Repo, is_lfs

PIECE = 2**16  # bytes moved to or from a socket at once


@dataclass
class Request:
    """One request, as `HubServer.requests` logs it; byte counts are of bodies."""

    method: str
    path: str
    status: int = 0  # 0 while unanswered, and for good where the connection was dropped
    received: int = 0
    sent: int = 0


class HubServer(HubStore):
    """The server; a context manager that listens on a free port of 127.0.0.1.

    Args:
        root: Folder for the content of files, and for the cache of a client with `env`.
        token: The access token that writing takes.
    """

    def __init__(self, root: Path, token: str = "hf_test_token"):
        super().__init__(root)
        self.token = token
        self.requests: list[Request] = []
        self.drops: list[tuple[str, str, int]] = []
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.hub = self
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        home = str(Path(root) / "hf_home")
        self.env = {"HF_ENDPOINT": self.url, "HF_TOKEN": token, "HF_HOME": home}

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def drop_next(self, method: str, path_prefix: str, after_bytes: int) -> None:
        """Close the connection of the next such request with a body longer than `after_bytes`.

        It closes once that much has passed, of the request's body (an upload: "PUT" "/lfs/", or
        "POST" "/v1/xorbs/" over Xet) or of the response's. Each call drops one more request.
        """
        self.drops.append((method, path_prefix, after_bytes))


class Dropped(Exception):
    """The connection is to be cut here, as `HubServer.drop_next` asked."""


class Handler(BaseHTTPRequestHandler):
    """One connection. An action returns the JSON to answer with, or None once it has answered."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def handle_request(self):
        self.hub: HubServer = self.server.hub
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.record = Request(self.command, unquote(url.path))
        self.hub.requests.append(self.record)
        self.pieces = self.receive()
        try:
            try:
                status, headers, answer = 200, {}, self.act(url.path)
            except HubError as error:
                status, headers = error.status, error_headers(str(error), error.code)
                answer = {"error": str(error)}
            self.body()  # left on the connection it would pass for the next request
            if answer is not None:
                self.send(status, json.dumps(answer).encode(), headers)
        except Dropped:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        except ConnectionError:  # the client has gone
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def act(self, path: str) -> dict | list | None:
        for method, pattern, needs_token, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command.replace("HEAD", "GET"):
                given = self.headers.get("Authorization")
                if given not in (None, f"Bearer {self.hub.token}"):
                    raise HubError(401, "Invalid credentials in Authorization header")
                if needs_token and not given:
                    raise HubError(401, "Invalid username or password.")
                values = {name: unquote(value or "") for name, value in match.groupdict().items()}
                if "repo_type" in values:
                    values["repo_type"] = values["repo_type"] or "model"
                return action(self, **values)
        raise HubError(404, f"no such route: {self.command} {path}")

    # Bodies

    def receive(self) -> Iterator[bytes]:
        """The request's body, piece by piece."""
        size = int(self.headers.get("Content-Length", 0))
        while size:
            piece = self.rfile.read(self.until_drop(size, self.record.received))
            if not piece:
                raise ConnectionError("the client closed the connection within a body")
            size -= len(piece)
            self.record.received += len(piece)
            yield piece

    def until_drop(self, size: int, passed: int) -> int:
        """How many of the next `size` bytes to move at once; raises Dropped where none may pass."""
        for drop in self.hub.drops:
            method, path_prefix, after_bytes = drop
            if self.command == method and self.record.path.startswith(path_prefix):
                if passed >= after_bytes:
                    self.hub.drops.remove(drop)
                    raise Dropped
                return min(size, PIECE, after_bytes - passed)
        return min(size, PIECE)

    def body(self) -> bytes:
        """What has not been read of the request's body."""
        return b"".join(self.pieces)

    def send(self, status: int, data: bytes, headers: dict) -> None:
        self.record.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        rest = memoryview(data if self.command != "HEAD" else b"")
        while rest:
            size = self.until_drop(len(rest), self.record.sent)
            self.record.sent += size
            self.wfile.write(rest[:size])
            rest = rest[size:]

    # Repositories

    def whoami(self) -> dict:
        token = {"displayName": "test", "role": "write"}
        auth = {"type": "access_token", "accessToken": token}
        return {"type": "user", "name": "tester", "orgs": [], "auth": auth}

    def validate_yaml(self) -> dict:
        return {"errors": [], "warnings": []}

    def create_repo(self) -> dict | None:
        asked = json.loads(self.body())
        repo_type = asked.get("type") or "model"
        repo_id = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        url = f"{self.hub.url}/{'' if repo_type == 'model' else f'{repo_type}s/'}{repo_id}"
        with self.hub.lock:
            if (repo_type, repo_id) not in self.hub.repos:
                self.hub.repos[repo_type, repo_id] = Repo(asked.get("visibility") == "private")
                return {"url": url}
        message = f"You already created this {repo_type} repo"
        # With `exist_ok=True` the client reads the address from the refusal.
        answer = {"error": message, "url": url}
        return self.send(409, json.dumps(answer).encode(), error_headers(message))

    def info(self, repo_type: str, repo_id: str, revision: str) -> dict:
        repo = self.hub.repo(repo_id, repo_type)
        commit = repo.resolve(revision or "main")
        names = [{"rfilename": path} for path in repo.commits[commit]]
        state = {"private": repo.private, "gated": False, "disabled": False}
        counts = {"downloads": 0, "likes": 0, "tags": []}
        return {"id": repo_id, "sha": commit, "siblings": names, **state, **counts}

    def refs(self, repo_type: str, repo_id: str) -> dict:
        answer = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        for branch, commit in self.hub.repo(repo_id, repo_type).refs.items():
            convert = branch.startswith("refs/convert/")
            name = branch.removeprefix("refs/convert/")
            ref = branch if convert else f"refs/heads/{branch}"
            item = {"name": name, "ref": ref, "targetCommit": commit}
            answer["converts" if convert else "branches"].append(item)
        return answer

    def create_branch(self, repo_type: str, repo_id: str, branch: str) -> dict:
        repo = self.hub.repo(repo_id, repo_type)
        start = json.loads(self.body()).get("startingPoint", "main")
        with self.hub.lock:
            if branch in repo.refs:
                raise HubError(409, f"Reference already exists: {branch}")
            repo.refs[branch] = repo.resolve(start)
        return {}

    # Reading

    def tree(self, repo_type: str, repo_id: str, revision: str, folder: str) -> list:
        prefix = f"{folder}/" if folder else ""
        entries = {}
        for path, file in self.hub.files(repo_id, repo_type, revision).items():
            if path.startswith(prefix):
                entries[path] = file.entry(path)
                for parent in map(str, PurePosixPath(path).parents):
                    if parent != "." and parent.startswith(prefix):
                        entries[parent] = folder_entry(parent)
        if folder and not entries:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        recursive = self.query.get("recursive") == ["true"]
        return [entries[p] for p in sorted(entries) if recursive or "/" not in p[len(prefix) :]]

    def paths_info(self, repo_type: str, repo_id: str, revision: str) -> list:
        files = self.hub.files(repo_id, repo_type, revision)
        answer = []
        for path in parse_qs(self.body().decode())["paths"]:
            if path in files:
                answer.append(files[path].entry(path))
            elif any(name.startswith(f"{path}/") for name in files):
                answer.append(folder_entry(path))
        return answer

    def download(self, repo_type: str, repo_id: str, revision: str, path: str) -> None:
        repo = self.hub.repo(repo_id, repo_type)
        commit = repo.resolve(revision)
        headers = {"X-Repo-Commit": commit}  # also where no such file is: the client notes that
        if path not in repo.commits[commit]:
            headers |= error_headers("Entry not found", "EntryNotFound")
            return self.send(404, b"", headers)
        file = repo.commits[commit][path]
        data = self.hub.blob(file.sha256).read_bytes()
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-Size": file.size, "X-Linked-ETag": f'"{file.etag}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.send(200, data, headers)
        start, end = int(asked[1]), min(int(asked[2] or file.size) + 1, file.size)
        if start >= end:
            raise HubError(416, f"{asked[0]} is outside of a file of {file.size} bytes")
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
        return self.send(206, data[start:end], headers)

    # Writing

    def preupload(self, repo_type: str, repo_id: str, revision: str) -> dict:
        files = self.hub.files(repo_id, repo_type, revision)
        answer = []
        for item in json.loads(self.body())["files"]:
            path = item["path"]
            mode = "lfs" if is_lfs(path, item["size"]) else "regular"
            known = {"oid": files[path].etag} if path in files else {}
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        return {"files": answer}

    def lfs_batch(self, repo_type: str, repo_id: str) -> dict:
        self.hub.repo(repo_id, repo_type)
        objects = json.loads(self.body())["objects"]
        for item in objects:
            if not self.hub.blob(item["oid"]).exists():
                url = f"{self.hub.url}/lfs/{item['oid']}"
                item["actions"] = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
        return {"transfer": "basic", "objects": objects}

    def lfs_upload(self, sha256: str) -> dict:
        data = self.body()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise HubError(400, f"the content uploaded is not that of sha256 {sha256}")
        self.hub.store(data)
        return {}

    def lfs_verify(self, sha256: str) -> dict:
        if not self.hub.blob(sha256).exists():
            raise HubError(404, f"no content of sha256 {sha256} was uploaded")
        return {}

    def xet_token(self, repo_type: str, repo_id: str) -> dict:
        self.hub.repo(repo_id, repo_type)
        expires = int(time.time()) + 3600  # Unix time, s
        return {"casUrl": self.hub.url, "exp": expires, "accessToken": self.hub.token}

    def xet_xorb(self, name: str) -> dict:
        self.hub.store_xorb(name, self.body())
        return {"was_inserted": True}

    def xet_shard(self) -> dict:
        self.hub.store_shard(self.body())
        return {"result": 1}

    def commit(self, repo_type: str, repo_id: str, branch: str) -> dict:
        """All of one commit, sent as a JSON object a line, or nothing of it."""
        repo = self.hub.repo(repo_id, repo_type)
        header, *changes = map(json.loads, self.body().splitlines())
        added = {}
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                added[value["path"]] = self.hub.store(base64.b64decode(value["content"]))
            elif change["key"] == "lfsFile":
                if not self.hub.blob(value["oid"]).exists():
                    raise HubError(400, f"no content of sha256 {value['oid']} was uploaded")
                added[value["path"]] = value["oid"]
        with self.hub.lock:
            if branch not in repo.refs:
                raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            parent = repo.refs[branch]
            if header["value"].get("parentCommit", parent) != parent:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repo.commits[parent])
            for change in changes:
                path = change["value"]["path"]
                if change["key"] == "deletedFolder":
                    files = {p: f for p, f in files.items() if not p.startswith(path)}
                elif change["key"] == "deletedFile" and files.pop(path, None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            files |= {path: self.hub.file(path, sha256) for path, sha256 in added.items()}
            commit = repo.commit(branch, files)
        return {"commitOid": commit, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{commit}"}


def error_headers(message: str, code: str = "") -> dict[str, str]:
    return {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


def folder_entry(path: str) -> dict:
    """A folder as the Hub's `tree` and `paths-info` list it."""
    return {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}


REPO = r"(?P<repo_id>[^/]+(?:/[^/]+)?)"
API = rf"/api/(?P<repo_type>model|dataset|space)s/{REPO}"
PAGE = rf"/(?:(?P<repo_type>dataset|space)s/)?{REPO}"
REVISION = r"(?P<revision>[^/]+)"
SHA256 = r"(?P<sha256>[0-9a-f]{64})"
# Method (GET stands for HEAD too), path, whether it takes the token, action. An address of LFS
# carries its own permission, as one of a cloud store does.
ROUTES = [
    ("GET", "/api/whoami-v2", True, Handler.whoami),
    ("POST", "/api/validate-yaml", False, Handler.validate_yaml),
    ("POST", "/api/repos/create", True, Handler.create_repo),
    ("GET", rf"{API}(?:/revision/{REVISION})?", False, Handler.info),
    ("GET", rf"{API}/refs", False, Handler.refs),
    ("POST", rf"{API}/branch/(?P<branch>[^/]+)", True, Handler.create_branch),
    ("GET", rf"{API}/tree/{REVISION}(?:/(?P<folder>.+))?", False, Handler.tree),
    ("POST", rf"{API}/paths-info/{REVISION}", False, Handler.paths_info),
    ("GET", rf"{PAGE}/resolve/{REVISION}/(?P<path>.+)", False, Handler.download),
    ("POST", rf"{API}/preupload/{REVISION}", True, Handler.preupload),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", True, Handler.lfs_batch),
    ("PUT", f"/lfs/{SHA256}", False, Handler.lfs_upload),
    ("POST", f"/lfs/{SHA256}/verify", True, Handler.lfs_verify),
    ("GET", rf"{API}/xet-write-token/[^/]+", True, Handler.xet_token),
    ("POST", r"/v1/xorbs/default/(?P<name>[0-9a-f]{64})", True, Handler.xet_xorb),
    ("POST", "/v1/shards", True, Handler.xet_shard),
    ("POST", rf"{API}/commit/(?P<branch>[^/]+)", True, Handler.commit),
]
