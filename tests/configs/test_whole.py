"""What appears whole or not at all, with an exchange and without; `tests/kills` kills writers of every kind."""

import os
import threading
import time

import pytest

from limner.configs import whole
from limner.configs.errors import InputError
from limner.configs.whole import Staging, alone, remove_folder, sweep, take_back, whole_directory, write_atomically


@pytest.fixture(params=["exchange", "two renames"], autouse=True)
def way(request, monkeypatch):
    """NFS and macOS cannot exchange."""
    if request.param == "two renames":
        monkeypatch.setattr(whole, "_exchange", lambda *_: False)
    return request.param


def write(folder, text):
    with whole_directory(folder) as staging:
        (staging / "a").write_text(text)
        (staging / "b").write_text(text)


def content(folder):
    return {path.name: path.read_text() for path in take_back(folder).iterdir()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_replaces_another_and_leaves_nothing(tmp_path):
    for text in ("one", "two"):
        write(tmp_path / "new" / "folder", text)
        assert content(tmp_path / "new" / "folder") == {"a": text, "b": text}
        assert names(tmp_path / "new") == ["folder"]
    remove_folder(tmp_path / "new" / "folder")
    assert names(tmp_path / "new") == []


def test_a_failure_leaves_the_one_before(tmp_path, monkeypatch):
    write(tmp_path / "folder", "one")
    for failing in ("the writer", "the disk", "the name"):
        cannot = pytest.raises(InputError, match="folder: cannot be written: full")
        with monkeypatch.context() as patch, cannot, whole_directory(tmp_path / "folder"):
            if failing == "the writer":
                raise OSError("full")
            patch.setattr(whole, "_sync" if failing == "the disk" else "_exchange", full)
        assert content(tmp_path / "folder") == {"a": "one", "b": "one"} and names(tmp_path) == ["folder"]


def full(*_):
    raise OSError("full")


def test_a_failed_second_rename_puts_the_one_before_back(tmp_path, monkeypatch):
    write(tmp_path / "folder", "one")
    monkeypatch.setattr(whole, "_exchange", lambda *_: False)
    staging = Staging(tmp_path / "folder")
    monkeypatch.setattr(
        type(tmp_path), "rename", lambda path, to: full() if "new" in path.parts else os.rename(path, to)
    )
    with pytest.raises(OSError, match="full"):
        staging.publish()
    staging.close()
    assert content(tmp_path / "folder") == {"a": "one", "b": "one"} and names(tmp_path) == ["folder"]


def test_a_link_leads_to_the_disk_that_the_folder_is_on(tmp_path):
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "folder").symlink_to(tmp_path / "disk" / "real")
    write(tmp_path / "folder", "one")
    assert (tmp_path / "folder").is_symlink() and content(tmp_path / "disk" / "real") == {"a": "one", "b": "one"}


def test_a_file_is_no_folder_to_replace(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file: is a file; name a folder"):
        write(tmp_path / "file", "one")
    assert names(tmp_path) == ["file"]


def test_a_folder_that_came_in_between_is_replaced_only_if_that_is_asked_for(tmp_path):
    for replace in (False, True):
        staging = Staging(tmp_path / "folder")
        (staging.written / "a").write_text("mine")
        write(tmp_path / "folder", "another's")
        if replace:
            staging.publish()
        else:
            with pytest.raises(FileExistsError):
                staging.publish(replace=False)
        staging.close()
        assert content(tmp_path / "folder")["a"] == ("mine" if replace else "another's")
        assert names(tmp_path) == ["folder"]


def test_leftovers_of_the_dead_go_and_the_living_and_others_stay(tmp_path, monkeypatch):
    living = Staging(tmp_path / "folder")
    (living.written / "a").write_text("alive")
    of_the_dead = ".limner-{}-0123456789abcdef"
    (tmp_path / of_the_dead.format(whole._kernel()) / "new" / "folder").mkdir(parents=True)
    (tmp_path / "_limner-0123456789abcdef").write_text("half")
    elsewhere = tmp_path / of_the_dead.format("00000000")  # on another machine, whose locks may not be seen here
    elsewhere.write_text("half")
    kept = [".limner", ".limner-notes", ".limner-0123456789abcdef.txt", "x.partial"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".limner-fedcba9876543210").symlink_to(tmp_path / "x.partial")
    expected = sorted([*kept, ".limner-fedcba9876543210", elsewhere.name, living.container.name])
    sweep(tmp_path)
    assert names(tmp_path) == expected
    day = time.time() - 2 * 24 * 3600
    os.utime(elsewhere, (day, day))
    write_atomically(tmp_path / "page.html", "text")  # any writer sweeps
    assert names(tmp_path) == sorted([*({*expected} - {elsewhere.name}), "page.html"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        (tmp_path / "_limner-0123456789abcdef").write_text("of somebody else")
        sweep(tmp_path)
        assert (tmp_path / "_limner-0123456789abcdef").exists()
    living.publish()
    living.close()
    assert content(tmp_path / "folder") == {"a": "alive"}


def killed_between_the_renames(folder):
    """As a kill leaves it: what stood there is aside, the new one is not there yet."""
    staging = Staging(folder)
    (staging.written / "a").write_text("new")
    staging._move_aside()
    os.close(staging._lock)
    assert not folder.exists()


def test_a_reader_takes_back_what_a_kill_left_aside(tmp_path):
    for text in ("one", "two"):
        write(tmp_path / "folder", text)
        killed_between_the_renames(tmp_path / "folder")
        assert content(tmp_path / "folder") == {"a": text, "b": text}
    sweep(tmp_path)
    assert names(tmp_path) == ["folder"]


def test_the_next_writer_takes_back_and_sweeps(tmp_path):
    write(tmp_path / "folder", "one")
    killed_between_the_renames(tmp_path / "folder")
    with pytest.raises(ZeroDivisionError), whole_directory(tmp_path / "folder"):
        _ = 1 / 0
    assert content(tmp_path / "folder") == {"a": "one", "b": "one"} and names(tmp_path) == ["folder"]


def test_a_reader_is_no_obstacle_to_a_living_writer(tmp_path, monkeypatch):
    """It takes back what the writer has just moved aside, and the writer tries again."""
    write(tmp_path / "folder", "one")
    monkeypatch.setattr(whole, "_exchange", lambda *_: False)
    move_aside, times = Staging._move_aside, []

    def interrupted(staging):
        move_aside(staging)
        if len(times) < 3:
            times.append(content(tmp_path / "folder"))

    monkeypatch.setattr(Staging, "_move_aside", interrupted)
    write(tmp_path / "folder", "two")
    assert times == [{"a": "one", "b": "one"}] * 3
    assert content(tmp_path / "folder") == {"a": "two", "b": "two"} and names(tmp_path) == ["folder"]


def test_what_limner_0_1_moved_aside_is_taken_back(tmp_path):
    for name in (".folder.previous", ".folder.old-123"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
        assert content(tmp_path / "folder") == {"a": name}
        remove_folder(tmp_path / "folder")


def test_where_the_disk_knows_no_locks_all_is_written_and_nothing_swept(tmp_path, monkeypatch):
    (tmp_path / ".limner-0123456789abcdef").write_text("perhaps of the living")
    monkeypatch.setattr(whole.fcntl, "flock", full)
    write(tmp_path / "folder", "one")
    write_atomically(tmp_path / "page.html", "text")
    with alone(tmp_path / "page.html"):
        pass
    assert names(tmp_path) == [".limner-0123456789abcdef", "folder", "page.html"]


def test_one_process_at_a_time_for_a_path(tmp_path):
    readable, writable = os.pipe()
    with alone(tmp_path / "answer.md"):
        child = os.fork()
        if not child:
            with alone(tmp_path / "answer.md"):
                os.write(writable, b"child")
            os._exit(0)
        time.sleep(0.2)
        os.write(writable, b"parent ")
    assert os.waitpid(child, 0)[1] == 0
    assert os.read(readable, 100) == b"parent child" and names(tmp_path) == []


def test_a_folder_that_is_replaced_is_there_all_the_time(tmp_path, way):
    if way == "two renames" or not whole._exchange(tmp_path, tmp_path):
        pytest.skip("no exchange")
    write(tmp_path / "folder", "one")
    missing, stop = [], threading.Event()

    def look():
        while not stop.is_set():
            missing.append(not (tmp_path / "folder" / "a").exists())

    looking = threading.Thread(target=look)
    looking.start()
    for number in range(30):
        write(tmp_path / "folder", str(number))
    stop.set()
    looking.join()
    assert len(missing) > 30 and not any(missing)
