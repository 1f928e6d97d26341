"""The files of CIFAR: read without running their pickles, and downloaded.

The oracles: Python's own pickle and NumPy on the same bytes, torchvision's names and sums, a web server on this
machine.
"""

import hashlib
import os
import pickle
import struct
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from command import until
from forked import as_nobody, ended, forked
from refusals import Calls, refusal_of
from torchvision.datasets import CIFAR10

from broadopt.data.cifar_files import obtain, published_md5, read_bytes
from broadopt.data.cifar_pickles import unpickle
from broadopt.errors import InputError

refusal = partial(refusal_of, unpickle)
PIXELS = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_dictionary_written_by_any_protocol_is_read(protocol: int) -> None:
    entry = {"data": PIXELS, "labels": [3, 4], b"name": b"bytes", "filenames": ["a.png", "b.png"]}
    found = unpickle(Path("file"), pickle.dumps(entry, protocol=protocol))
    assert list(found) == ["data", "labels", "name", "filenames"]
    assert found["data"].dtype == np.uint8
    assert np.array_equal(found["data"], PIXELS)
    assert found["labels"] == [3, 4]
    assert found["name"] == b"bytes"


def test_array_in_column_order_is_read() -> None:
    found = unpickle(Path("file"), pickle.dumps({"data": np.asfortranarray(PIXELS)}, protocol=4))
    assert np.array_equal(found["data"], PIXELS)


def test_names_of_numpy_1_and_numpy_2_are_read_alike() -> None:
    new = pickle.dumps({"data": PIXELS}, protocol=0)
    old = new.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != new
    assert np.array_equal(unpickle(Path("file"), old)["data"], unpickle(Path("file"), new)["data"])


def python_2_pickle(labels: list[int], pixels: np.ndarray) -> bytes:
    """The published files' own form: protocol 2 with Python 2's byte strings, which no Python 3 writes."""

    def short(characters: bytes) -> bytes:
        return b"U" + bytes([len(characters)]) + characters

    shape = b"K\x01" + b"".join(b"M" + struct.pack("<H", length) for length in pixels.shape) + b"\x86"
    kind = (
        b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03" + short(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    )
    raw = b"T" + struct.pack("<i", pixels.nbytes) + pixels.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + short(b"b") + b"\x87R"
    array += b"(" + shape + kind + b"K\x00tb\x89" + raw + b"tb"
    listed = b"(" + b"".join(b"K" + bytes([label]) for label in labels) + b"l"
    return b"\x80\x02}(" + short(b"labels") + listed + short(b"data") + array + b"u."


def test_python_2_pickle_is_read() -> None:
    blob = python_2_pickle([7, 250], PIXELS)
    assert np.array_equal(pickle.loads(blob, encoding="bytes")[b"data"], PIXELS)
    found = unpickle(Path("file"), blob)
    assert found["labels"] == [7, 250]
    assert np.array_equal(found["data"], PIXELS)


def ready_made(module: bytes, name: bytes, argument: bytes) -> bytes:
    """A pickle that calls module.name(argument), whether or not it can be imported here."""
    return b"\x80\x02}U\x04datac" + module + b"\n" + name + b"\nU" + bytes([len(argument)]) + argument + b"\x85Rs."


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("function", [os.system, os.popen, exec, eval, subprocess.call], ids=lambda f: f.__name__)
def test_pickle_that_calls_a_function_is_refused_and_calls_nothing(
    tmp_path: Path, function: Callable[..., object], protocol: int
) -> None:
    mark = tmp_path / "mark"
    shell = function in (os.system, os.popen)
    command = f"touch {mark}" if shell else f"open({str(mark)!r}, 'w')"
    argument = ["touch", str(mark)] if function is subprocess.call else command
    blob = pickle.dumps({"data": Calls(function, argument)}, protocol=protocol)
    loaded = pickle.loads(blob)
    if function is os.popen:
        loaded["data"].close()  # waits for the command
    assert mark.exists(), "the pickle of this test is harmless and proves nothing"
    mark.unlink()
    assert "refused" in refusal(tmp_path / "data_batch_1", blob)
    assert str(tmp_path / "data_batch_1") in refusal(tmp_path / "data_batch_1", blob)
    time.sleep(0.2 if function is os.popen else 0)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (b"numpy", b"load"),
        (b"numpy", b"memmap"),
        (b"numpy.core.multiarray", b"fromfile"),
        (b"numpy.core.multiarray", b"_reconstruct.__globals__"),
        (b"numpy.testing._private.utils", b"runstring"),
        (b"copyreg", b"_reconstructor"),
        (b"builtins", b"getattr"),
        (b"__builtin__", b"eval"),
        (b"_codecs", b"decode"),
        (b"torch", b"load"),
        (b"broadopt.cifar_files", b"log"),
    ],
)
def test_every_name_but_the_needed_ones_is_refused(module: bytes, name: bytes) -> None:
    said = refusal(Path("file"), ready_made(module, name, b"x"))
    assert f"refused: its pickle asks for {module.decode()}.{name.decode()}" in said


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((2, 3072), np.int8),
        np.zeros((2, 3072), np.float64),
        np.array([[1, "x"]], dtype=object),
        np.zeros(3, dtype=[("a", "u1")]),
        np.array(["a"]),
    ],
    ids=lambda value: str(value.dtype),
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_of_anything_but_bytes_are_refused(value: np.ndarray, protocol: int) -> None:
    assert "refused" in refusal(Path("file"), pickle.dumps({"data": value}, protocol=protocol))


def test_other_encodings_are_refused() -> None:
    blob = b"\x80\x02}U\x04datac_codecs\nencode\nX\x01\x00\x00\x00xU\x05rot13\x86Rs."
    assert "refused" in refusal(Path("file"), blob)


def test_stand_ins_cannot_be_altered_by_a_pickle() -> None:
    # BUILD on a class or a function that the pickle named, as if it were an object with a state.
    for name in (b"numpy\nndarray", b"numpy\ndtype", b"numpy.core.multiarray\n_reconstruct"):
        for attribute in (b"__setstate__", b"__code__", b"__new__"):
            key = b"X" + struct.pack("<i", len(attribute)) + attribute
            refusal(Path("file"), b"\x80\x02c" + name + b"\nN}" + key + b"K\x01s\x86b.")
    assert np.array_equal(unpickle(Path("file"), pickle.dumps({"data": PIXELS}, protocol=2))["data"], PIXELS)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_file_cut_anywhere_is_an_input_error_naming_it(protocol: int) -> None:
    blob = pickle.dumps({"data": PIXELS, "labels": [1, 2]}, protocol=protocol)
    assert len(blob) > 6000
    for length in (*range(300), *range(300, len(blob) - 300, 997), *range(len(blob) - 300, len(blob))):
        assert refusal(Path("some/data_batch_1"), blob[:length]).startswith("some/data_batch_1: truncated, or not")


@pytest.mark.parametrize("blob", [b"", b"\0" * 100, b"PK\3\4" * 30, b"\x1f\x8b" * 30, b"<html>not found</html>"])
def test_files_of_another_kind_are_refused(blob: bytes) -> None:
    refusal(Path("file"), blob)


def test_pickle_of_something_else_than_a_dictionary_is_refused() -> None:
    assert "expected a pickled dictionary, found list" in refusal(Path("file"), pickle.dumps([1, 2]))


def test_unreadable_file_is_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=str(path)):
            read_bytes(path)


class Host:
    """A web server on this machine that stands in for the publisher's, counts requests, and waits, as long as one asks,
    before it sends its answer.
    """

    def __init__(self, body: bytes, wait: Callable[[], object] = lambda: None) -> None:
        self.requests = 0
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.requests += 1
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                wait()
                try:
                    self.wfile.write(body)
                except (BrokenPipeError, ConnectionResetError):
                    return  # the client asked for the address after redirections only

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/cifar-10-python.tar.gz"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, cifar_writer: Callable[..., Path]) -> bytes:
    """A small archive in the published layout; three more members would climb out of a careless extraction."""
    root = tmp_path_factory.mktemp("published")
    folder = cifar_writer(root)
    with tarfile.open(root / "made.tar.gz", "w:gz") as tar:
        tar.add(folder, folder.name)
        for name in ("../climbed", str(root / "absolute")):
            tar.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo(f"{folder.name}/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../.."
        tar.addfile(link)
    return (root / "made.tar.gz").read_bytes()


@pytest.fixture
def published(archive: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with Host(archive) as host:
        monkeypatch.setattr(CIFAR10, "url", host.url)
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
        yield host


def test_file_names_and_sums_are_torchvisions() -> None:
    sums = published_md5(CIFAR10)
    assert sums["data_batch_3"] == "54ebc095f3ab1f0389bbae665268c751"
    assert sums["batches.meta"] == "5ff9c542aee3614f3951f8cda6e48888"
    assert len(sums) == 7


def test_missing_data_are_downloaded_into_a_new_folder(tmp_path: Path, published: Host) -> None:
    folder = obtain(CIFAR10, tmp_path / "new" / "data")
    assert folder == tmp_path / "new" / "data" / "cifar-10-batches-py"
    assert sorted(file.name for file in folder.iterdir()) == sorted(published_md5(CIFAR10))
    assert np.array_equal(
        unpickle(folder, (folder / "test_batch").read_bytes())["data"],
        pickle.loads((folder / "test_batch").read_bytes())["data"],
    )


def test_what_is_there_is_neither_downloaded_nor_locked(tmp_path: Path, published: Host) -> None:
    obtain(CIFAR10, tmp_path)
    (tmp_path / ".cifar-10-python.tar.gz.lock").unlink(missing_ok=True)
    before = published.requests, sorted(tmp_path.rglob("*"))
    obtain(CIFAR10, tmp_path)
    assert (published.requests, sorted(tmp_path.rglob("*"))) == before


def test_no_member_of_the_archive_is_written_outside_its_folder(
    tmp_path: Path, published: Host, archive: bytes
) -> None:
    folder = obtain(CIFAR10, tmp_path / "a" / "b")
    with tarfile.open(tmp_path / "a" / "b" / "cifar-10-python.tar.gz") as tar:
        absolute = [Path(name) for name in tar.getnames() if name.startswith("/")]
        assert "../climbed" in tar.getnames()
    assert len(absolute) == 1
    assert not absolute[0].exists()
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents]
    assert {path.name for path in outside} <= {"cifar-10-python.tar.gz", ".cifar-10-python.tar.gz.lock"}
    assert not (tmp_path / "a" / "climbed").exists()
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_archive_that_links_in_place_of_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not data")
    with tarfile.open(tmp_path / "evil.tar.gz", "w:gz") as tar:
        for name in published_md5(CIFAR10):
            link = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, str(secret)
            tar.addfile(link)
    body = (tmp_path / "evil.tar.gz").read_bytes()
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(body).hexdigest())
    with Host(body) as host:
        monkeypatch.setattr(CIFAR10, "url", host.url)
        with pytest.raises(InputError, match="is not a file"):
            obtain(CIFAR10, tmp_path / "data")
    assert list((tmp_path / "data" / "cifar-10-batches-py").iterdir()) == []


def test_archive_left_in_part_by_an_earlier_download_is_fetched_anew(
    tmp_path: Path, published: Host, archive: bytes
) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive[: len(archive) // 2])
    folder = obtain(CIFAR10, tmp_path)
    assert len(list(folder.iterdir())) == 7


def test_links_in_a_data_folder_lead_no_writing_elsewhere(tmp_path: Path, published: Host) -> None:
    mine, data = tmp_path / "mine", tmp_path / "data"
    mine.write_text("my own file")
    (data / "cifar-10-batches-py").mkdir(parents=True)
    for place in (data / "cifar-10-python.tar.gz", data / "cifar-10-batches-py/.test_batch.part"):
        place.symlink_to(mine)
    folder = obtain(CIFAR10, data)
    assert mine.read_text() == "my own file"
    assert sorted(file.name for file in folder.iterdir()) == sorted(published_md5(CIFAR10))


def test_archive_left_whole_is_unpacked_without_a_download(tmp_path: Path, published: Host, archive: bytes) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archive)
    obtain(CIFAR10, tmp_path)
    assert published.requests == 0


def test_extraction_broken_off_is_completed_and_leaves_what_is_there(
    tmp_path: Path, published: Host, archive: bytes
) -> None:
    folder = obtain(CIFAR10, tmp_path)
    (folder / "test_batch").rename(folder / ".test_batch.part")
    (folder / "data_batch_2").write_bytes(b"the user's own")
    requests = published.requests
    obtain(CIFAR10, tmp_path)
    assert published.requests == requests
    assert sorted(file.name for file in folder.iterdir()) == sorted(published_md5(CIFAR10))
    assert (folder / "data_batch_2").read_bytes() == b"the user's own"


def test_download_with_another_sum_is_refused_and_unpacks_nothing(
    tmp_path: Path, published: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(InputError, match="the download of http://127"):
        obtain(CIFAR10, tmp_path)
    assert not (tmp_path / "cifar-10-batches-py").exists()


def test_without_network_one_line_says_what_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "url", "https://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(InputError) as caught:
        obtain(CIFAR10, tmp_path / "data")
    said = str(caught.value)
    assert "\n" not in said
    for part in (
        "data_batch_1",
        str(tmp_path / "data"),
        "https://127.0.0.1:9/",
        "data_dir",
        "BROADOPT_DATA",
        "refused",
    ):
        assert part in said


def test_silent_host_is_given_up(tmp_path: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broadopt.data.cifar_files.PATIENCE", 0.3)
    given_up = threading.Event()
    with Host(archive, given_up.wait) as host:
        monkeypatch.setattr(CIFAR10, "url", host.url)
        with pytest.raises(InputError, match="timed out"):
            obtain(CIFAR10, tmp_path)
        given_up.set()


def test_data_dir_that_cannot_be_made_is_an_input_error(tmp_path: Path, published: Host) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=f"data_dir={tmp_path}/file/data: cannot be created") as caught:
        obtain(CIFAR10, tmp_path / "file" / "data")
    assert "\n" not in str(caught.value)


def test_data_dir_that_cannot_be_written_is_an_input_error(published: Host) -> None:
    with TemporaryDirectory() as place:  # pytest's own folders are shut for other users
        Path(place).chmod(0o555)
        found = as_nobody(lambda: str(obtain(CIFAR10, Path(place))))
    assert found.startswith(f"raised InputError('data_dir={place}: cannot be created or written")


def test_two_processes_at_once_download_once(tmp_path: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    with Host(archive) as alone:
        monkeypatch.setattr(CIFAR10, "url", alone.url)
        obtain(CIFAR10, tmp_path / "alone")

    def both_have_asked() -> bool:
        return len(list(tmp_path.glob("asked-*"))) == 2

    def ask() -> None:
        (tmp_path / f"asked-{os.getpid()}").touch()
        found = list(obtain(CIFAR10, tmp_path / "data").iterdir())
        (tmp_path / f"asked-{os.getpid()}").write_text(str(len(found)))

    with Host(archive, lambda: until(both_have_asked)) as host:
        monkeypatch.setattr(CIFAR10, "url", host.url)
        children = [forked(ask, tmp_path / f"output{i}.txt") for i in range(2)]
        codes = [ended(child) for child in children]
        assert codes == [0, 0], [(tmp_path / f"output{i}.txt").read_text() for i in range(2)]
        assert [path.read_text() for path in tmp_path.glob("asked-*")] == ["7", "7"]
        assert host.requests == alone.requests
