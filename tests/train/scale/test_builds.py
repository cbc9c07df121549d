"""DeepSpeed's build without a GPU is announced, and a lock that it would wait for is named."""

import os
import time

import pytest

from limner.configs.errors import InputError
from limner.train.scale import builds
from limner.train.scale.builds import ON_CPU, STALE_S, check_builds, checked


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(builds.torch.cuda, "is_available", lambda: False)
    (tmp_path / ON_CPU).mkdir()
    return tmp_path / ON_CPU


def test_a_build_is_announced_once(cache, capsys, monkeypatch):
    check_builds()
    said = capsys.readouterr()
    assert ON_CPU in said.err and "a minute or two" in said.err and not said.out
    monkeypatch.setenv("LOCAL_RANK", "1")
    check_builds()
    monkeypatch.setenv("LOCAL_RANK", "0")
    (cache / f"{ON_CPU}.so").touch()
    check_builds()
    (cache / f"{ON_CPU}.so").unlink()
    monkeypatch.setattr(builds.torch.cuda, "is_available", lambda: True)
    check_builds()
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED")
    (cache / "lock").touch()
    check_builds()
    assert capsys.readouterr() == ("", "")


def test_a_lock_is_named_and_an_old_one_refused(cache, capsys, monkeypatch):
    (cache / f"{ON_CPU}.so").touch()
    (cache / "lock").touch()
    check_builds()
    assert f"delete it: rm {cache / 'lock'}" in capsys.readouterr().err
    long_ago = time.time() - STALE_S - 60
    os.utime(cache / "lock", (long_ago, long_ago))
    ran = []
    with pytest.raises(InputError, match=f"lock: of a build that began 31 minutes ago, .* delete it: rm {cache}/lock"):
        checked(ran.append)(["--x"])
    (cache / "lock").unlink()
    checked(ran.append)(["--x"])
    assert ran == [["--x"]]


def test_the_folder_is_the_one_that_torch_builds_in(tmp_path, monkeypatch):
    from torch.utils.cpp_extension import _get_build_directory

    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr("torch.utils.cpp_extension.get_default_build_root", lambda: str(tmp_path))
    monkeypatch.setattr(builds, "get_default_build_root", lambda: str(tmp_path))
    folder = _get_build_directory("some_op", verbose=False)
    assert [str(each / "some_op") for each in builds._folders()] == [folder]
