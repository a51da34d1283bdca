"""What the Hub of `hub_server` keeps: repositories, their commits and the content of files."""

import hashlib
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow

LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".onnx", ".zip", ".tar", ".gz", ".npz")
LFS_SIZE = 10 * 2**20  # bytes; a larger file is LFS whatever its suffix


class HubError(Exception):
    """A refusal: HTTP status, sentence, and the `X-Error-Code` that the client goes by."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass(frozen=True)
class File:
    """One file of a commit, either in Git or, behind a pointer in Git, in LFS."""

    sha256: str
    size: int
    oid: str  # Git's id of the blob: the content's, or the LFS pointer's
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def entry(self, path: str) -> dict:
        """The file as the Hub's `tree` and `paths-info` list it."""
        entry = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return entry


class Repo:
    """A commit is a whole snapshot (path -> `File`); a ref is a branch such as `main`."""

    def __init__(self, private: bool = False):
        self.private = private
        self.commits: dict[str, dict[str, File]] = {}
        self.refs: dict[str, str] = {}
        self.commit("main", {})

    def resolve(self, revision: str) -> str:
        """The commit id that a branch or a commit id names."""
        commit = self.refs.get(revision, revision)
        if commit not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def commit(self, branch: str, files: dict[str, File]) -> str:
        identity = repr((len(self.commits), self.refs.get(branch), sorted(files.items())))
        commit = hashlib.sha1(identity.encode()).hexdigest()
        self.commits[commit] = files
        self.refs[branch] = commit
        return commit


class HubStore:
    """Repositories of all types in memory, content in files of `root` named by its sha256."""

    def __init__(self, root: Path):
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lock = threading.Lock()  # held while a repository or a branch changes
        self._blobs = Path(root) / "blobs"
        self._xorbs = Path(root) / "xorbs"
        self._blobs.mkdir(parents=True)
        self._xorbs.mkdir()

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        if (repo_type, repo_id) not in self.repos:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return self.repos[repo_type, repo_id]

    def files(
        self, repo_id: str, repo_type: str = "model", revision: str = "main"
    ) -> dict[str, File]:
        """The files of one revision, by path."""
        repo = self.repo(repo_id, repo_type)
        return repo.commits[repo.resolve(revision)]

    def read(
        self, repo_id: str, path: str, repo_type: str = "model", revision: str = "main"
    ) -> bytes:
        """The content of one file."""
        return self.blob(self.files(repo_id, repo_type, revision)[path].sha256).read_bytes()

    def add_files(
        self,
        repo_id: str,
        files: dict[str, bytes],
        repo_type: str = "model",
        revision: str = "main",
    ) -> str:
        """Commit files without a client; returns the commit id.

        A repository or branch that is not there is made; the branch starts empty, as the Hub's
        `refs/convert/parquet` does.
        """
        repo = self.repos.setdefault((repo_type, repo_id), Repo())
        kept = repo.commits.get(repo.refs.get(revision), {})
        added = {path: self.file(path, self.store(data)) for path, data in files.items()}
        return repo.commit(revision, {**kept, **added})

    def blob(self, sha256: str) -> Path:
        return self._blobs / sha256

    def store(self, data: bytes) -> str:
        """Keep content; returns its sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        part = self._blobs / f"{sha256}.{threading.get_ident()}"
        part.write_bytes(data)
        part.replace(self.blob(sha256))
        return sha256

    def file(self, path: str, sha256: str) -> File:
        """Stored content as a file of a commit."""
        size = self.blob(sha256).stat().st_size
        lfs = is_lfs(path, size)
        if lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\n"
            in_git = f"{pointer}size {size}\n".encode()
        else:
            in_git = self.blob(sha256).read_bytes()
        oid = hashlib.sha1(b"blob %d\0" % len(in_git) + in_git).hexdigest()
        return File(sha256, size, oid, lfs)

    # Xet, with which the client uploads what LFS holds wherever hf_xet is installed: a file is cut
    # into chunks, chunks are packed into xorbs, and a shard says which chunks make up which file.
    # Formats: https://huggingface.co/docs/xet, "Xorb" and "Shard".

    def store_xorb(self, name: str, data: bytes) -> None:
        (self._xorbs / name).write_bytes(data)

    def store_shard(self, shard: bytes) -> None:
        """Put together and keep every file that the shard describes."""
        for segments in shard_files(shard):
            parts = []
            for name, start, end in segments:
                parts += xorb_chunks((self._xorbs / name).read_bytes())[start:end]
            self.store(b"".join(parts))


def is_lfs(path: str, size: int) -> bool:
    return size > 0 and (size > LFS_SIZE or path.endswith(LFS_SUFFIXES))


def shard_files(shard: bytes) -> Iterator[list[tuple[str, int, int]]]:
    """For each file of a shard, its segments in order: (xorb, first chunk, end of chunks)."""
    offset = 48  # behind the shard's header
    while shard[offset : offset + 32] != b"\xff" * 32:
        flags, count = struct.unpack_from("<II", shard, offset + 32)
        segments = []
        for entry in range(offset + 48, offset + 48 + 48 * count, 48):
            *name, _, _, start, end = struct.unpack_from("<4Q4I", shard, entry)
            segments.append(("".join(f"{word:016x}" for word in name), start, end))
        yield segments
        has_verification, has_metadata = flags >> 31, flags >> 30 & 1
        offset += 48 * (1 + count + count * has_verification + has_metadata)


def xorb_chunks(xorb: bytes) -> list[bytes]:
    """The chunks of a xorb, decompressed."""
    chunks, offset = [], 0
    while offset < len(xorb) and xorb[offset] == 0:  # a header starts with 0, the footer with "X"
        size = int.from_bytes(xorb[offset + 1 : offset + 4], "little")
        scheme = xorb[offset + 4]
        full_size = int.from_bytes(xorb[offset + 5 : offset + 8], "little")
        data = xorb[offset + 8 : offset + 8 + size]
        offset += 8 + size
        if scheme in (1, 2):
            data = pyarrow.decompress(data, full_size, codec="lz4", asbytes=True)
        if scheme == 2:  # every first byte of four, then every second, third and fourth
            grouped, data, start = data, bytearray(full_size), 0
            for first in range(4):
                end = start + len(range(first, full_size, 4))
                data[first::4] = grouped[start:end]
                start = end
        elif scheme not in (0, 1):
            raise HubError(400, f"unknown compression of a xorb's chunk: {scheme}")
        chunks.append(bytes(data))
    return chunks
