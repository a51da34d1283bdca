"""What the Space takes out of uploads and archives, and what it refuses to."""

import importlib.util
import io
import shutil
import struct
import subprocess
import tracemalloc
import zipfile

import pytest
from space_server import SPACE

spec = importlib.util.spec_from_file_location("space_batch", SPACE / "batch.py")
batch = importlib.util.module_from_spec(spec)
spec.loader.exec_module(batch)


def archive(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def read(*paths):
    return list(batch.read_uploads([(path.name, path) for path in paths]))


def test_files_and_members_in_their_order(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    members = {"ward/": b"", "ward/b.png": b"b", "__MACOSX/b.png": b"x", "ward/.DS_Store": b"x"}
    packed = archive(tmp_path / "x.zip", members)
    assert read(tmp_path / "a.png", packed) == [
        batch.Entry("a.png", b"a"),
        batch.Entry("x.zip/ward/b.png", b"b"),
    ]
    assert not list(tmp_path.glob("*/"))  # nothing was unpacked


def nested():
    content = io.BytesIO()
    archive(content, {"a.png": b"a"})
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (nested(), "An archive inside an archive is not opened."),
        (bytes(20 * 2**20), "compressed more than 200-fold"),
        (bytes(64 * 2**20 + 1), "The file is larger than 64 MB."),
    ],
    ids=["nested", "bomb", "large"],
)
def test_a_member_that_is_not_read(tmp_path, content, error):
    packed = archive(tmp_path / "x.zip", {"first.png": content, "second.png": b"b"})
    first, second = read(packed)
    assert first.content is None and error in first.error
    assert second == batch.Entry("x.zip/second.png", b"b")


def change(path, signature, offset, value):
    """Overwrites a 16- or 32-bit field of each record that has a signature."""
    content, start = bytearray(path.read_bytes()), 0
    while (start := content.find(signature, start)) >= 0:
        content[start + offset : start + offset + len(value)] = value
        start += 4
    path.write_bytes(content)
    return path


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


@pytest.mark.parametrize(
    ("signature", "offset", "value", "error"),
    [
        (CENTRAL, 8, b"\x01\x00", "encrypted"),
        (CENTRAL, 10, b"\x63\x00", "compressed in a way that is not read"),
        (CENTRAL, 16, b"\x00\x00\x00\x00", "damaged"),
        (CENTRAL, 24, struct.pack("<I", 64 * 2**20 + 1), "larger than 64 MB"),
        (CENTRAL, 6, b"\xff\x00", "damaged"),
        (CENTRAL, 8, b"\x00\x08\x0e\x00", "compressed in a way that is not read"),
        (CENTRAL, 46, b"\xff", "damaged"),
        (LOCAL, 26, b"\xff\xff", "damaged"),
        (LOCAL, 30, b"\xff", "damaged"),
        (END, 12, struct.pack("<I", 2**31), "far more than 200 members"),
        (END, 12, struct.pack("<I", 2**19), "damaged"),
        (END, 0, b"PK\x00\x00", "damaged"),
    ],
    ids="encrypted method checksum size version lzma name local called many directory end".split(),
)
def test_a_damaged_or_lying_archive(tmp_path, signature, offset, value, error):
    packed = archive(tmp_path / "x.zip", {"ä.png": bytes(range(256))})
    (tmp_path / "b.png").write_bytes(b"b")
    entry, other = read(change(packed, signature, offset, value), tmp_path / "b.png")
    assert entry.content is None and error in entry.error
    assert other == batch.Entry("b.png", b"b")


@pytest.mark.parametrize(
    "made", [["zip", "-q", "x.zip", "a.png"], ["jar", "cf", "x.zip", "a.png"]], ids=lambda m: m[0]
)
def test_an_archive_of_another_program(tmp_path, made):
    if not shutil.which(made[0]):
        pytest.skip(f"there is no command {made[0]}")
    (tmp_path / "a.png").write_bytes(b"a")
    subprocess.run(made, cwd=tmp_path, check=True)
    assert batch.Entry("x.zip/a.png", b"a") in read(tmp_path / "x.zip")


class Pipe(io.BytesIO):
    """What an archive is streamed into: the size of a member follows it."""

    def tell(self):
        raise io.UnsupportedOperation


@pytest.mark.parametrize("force_zip64", [False, True], ids=["usual", "zip64 sizes"])
def test_an_archive_that_was_streamed(tmp_path, force_zip64):
    file = Pipe()
    with zipfile.ZipFile(file, "w") as written:
        with written.open("a.png", "w", force_zip64=force_zip64) as member:
            member.write(b"a")
    (tmp_path / "x.zip").write_bytes(file.getvalue())
    assert read(tmp_path / "x.zip") == [batch.Entry("x.zip/a.png", b"a")]


@pytest.mark.parametrize("comment", [b"", b"c" * 65_535], ids=["last", "before a comment"])
def test_a_table_of_contents_behind_a_small_one_is_not_read(tmp_path, monkeypatch, comment):
    """ZIP64: `zipfile` would take the place and size of the table from the larger record."""
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    packed = archive(tmp_path / "x.zip", {"a.png": b"a", "b.png": b"b"})
    change(packed, END, 10, struct.pack("<HI", 2, 100))
    with zipfile.ZipFile(packed, "a") as file:
        file.comment = comment
    (entry,) = read(packed)
    assert entry.content is None and "ZIP64" in entry.error


@pytest.mark.parametrize(
    "compression",
    [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
    ids=["deflate", "bzip2", "lzma"],
)
def test_a_member_larger_than_it_says_costs_no_memory(tmp_path, compression):
    packed = archive(tmp_path / "x.zip", {"a.png": bytes(60 * 2**20)}, compression)
    change(packed, CENTRAL, 24, struct.pack("<I", 1000))
    tracemalloc.start()
    (entry,) = read(packed)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert entry.error or len(entry.content) <= 1001
    assert peak < 5 * 2**20


def test_no_more_files_than_the_limit(tmp_path):
    packed = archive(tmp_path / "x.zip", {f"{i}.png": b"a" for i in range(batch.MAX_FILES + 5)})
    entries = read(packed)
    assert len(entries) == batch.MAX_FILES + 1
    assert entries[-1].error == "There are more than 200 files; send the rest apart."
    assert all(entry.content for entry in entries[:-1])


def test_no_more_bytes_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MAX_TOTAL_BYTES", 2**20)
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(bytes(2**19))
    entries = read(*sorted(tmp_path.iterdir()))
    assert [entry.name for entry in entries] == ["a.png", "b.png", "(more)"]
    assert "more than 1 MB" in entries[-1].error


def test_an_upload_that_was_deleted_is_a_row(tmp_path):
    (entry,) = read(tmp_path / "gone.png")
    assert entry.error == "The upload was deleted; repeat it."


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ward/a.png", "ward/a.png"),
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("..\\..\\a.png", "a.png"),
        ("a\x00\n\x1b[31mb.png", "a[31mb.png"),
        ("gnp.\u202egpj.exe", "gnp.gpj.exe"),
        ("=HYPERLINK(1).png", "'=HYPERLINK(1).png"),
        ("..", "(no name)"),
        ("a" * 300 + ".png", "a" * 196 + ".png"),
    ],
)
def test_a_name_is_shown_harmlessly(name, shown):
    assert batch.harmless(name) == shown


def test_time_is_limited(monkeypatch):
    monkeypatch.setattr(batch, "MAX_SECONDS", -1)

    class Asked:
        @staticmethod
        def row(name, error):
            return {"file": name, "reason": error}

    entries = iter([batch.Entry("a.png", b"a"), batch.Entry("b.png", b"b")])
    (row,) = batch.assess_entries(Asked, entries)
    assert row.cells["file"] == "a.png" and "minutes are over" in row.cells["reason"]
