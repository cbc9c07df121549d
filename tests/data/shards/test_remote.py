"""Shards that lie elsewhere: fetched, checked, kept in a cache of bounded size; what is no address is not opened."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from limner.configs.errors import InputError
from limner.data.shards import read_documents, read_index, remote
from limner.data.shards.keyed import Records

from ..shard_files import ids, write


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder of shards on a file system in memory, with a cache of its own."""
    import fsspec

    monkeypatch.setenv(remote.CACHE, str(tmp_path / "cache"))
    directory = write(tmp_path / "d", 23, max_records=10)
    system = fsspec.filesystem("memory")
    for file in directory.iterdir():
        system.pipe_file(f"/bucket/d/{file.name}", file.read_bytes())
    yield system
    system.rm("/bucket", recursive=True)


def test_shards_elsewhere_are_fetched_as_they_are_read(tmp_path, elsewhere, monkeypatch):
    assert ids(read_documents("memory://bucket/d", "train", shuffle_seed=None)) == [f"doc-{n}" for n in range(23)]
    index = read_index("memory://bucket/d")
    assert Records(index, "train").document(11).id == "doc-11"
    cache = tmp_path / "cache"
    assert sorted(p.name for p in cache.iterdir()) == sorted(f"{shard.sha256}.tar" for shard in index.shards)
    for file in cache.iterdir():
        file.unlink()
    monkeypatch.setenv(remote.CACHE_BYTES, str(index.shards[0].bytes + 10))
    assert len(ids(read_documents("memory://bucket/d", "train", shuffle_seed=0))) == 23
    assert len(list(cache.iterdir())) == 1, "the cache is bounded"


def test_an_open_shard_is_not_fetched_again_when_the_cache_forgets_it(tmp_path, elsewhere):
    records = Records(read_index("memory://bucket/d"), "train")
    assert records.document(0).id == "doc-0"
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    assert records.document(1).id == "doc-1"
    assert not list((tmp_path / "cache").iterdir())


def test_what_is_wrong_with_an_address_is_said(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr(remote, "WAIT_S", 0)
    with pytest.raises(InputError, match="memory://bucket/none/index.json: no such file"):
        read_index("memory://bucket/none")
    for address in ("pipe:cat /etc/passwd", "|id", "simplecache::s3://a/b", "file::memory://bucket/d"):
        with pytest.raises(InputError, match="commands and chains of file systems are not opened"):
            read_index(address)
    with pytest.raises(InputError, match="no file system of that kind"):
        read_index("shell://a/b")
    with pytest.raises(InputError, match="http://127.0.0.1:9/d/index.json: cannot be reached"):
        read_index("http://127.0.0.1:9/d")
    elsewhere.pipe_file("/bucket/d/train-000001.tar", b"other bytes")
    with pytest.raises(InputError, match="train-000001.tar: its sha256 is not that of the index"):
        ids(read_documents("memory://bucket/d", "train", shuffle_seed=None))


def test_shards_of_a_web_server(tmp_path, monkeypatch):
    monkeypatch.setenv(remote.CACHE, str(tmp_path / "cache"))
    write(tmp_path / "served/d", 5)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/d"
        assert ids(read_documents(address, "train", shuffle_seed=None)) == [f"doc-{n}" for n in range(5)]
        with pytest.raises(InputError, match="none/index.json: no such file"):
            read_index(address.replace("/d", "/none"))
    finally:
        server.shutdown()
