from __future__ import annotations

import threading
import time

import pytest

from clemreg.io.atomic import atomic_path, discard


@pytest.fixture
def busy(tmp_path):
    """A folder to which four threads add files while it is there, half a second at most."""
    folder = tmp_path / "a.n5"
    (folder / "s0").mkdir(parents=True)
    for i in range(300):  # so that emptying it takes a moment
        (folder / "s0" / f"{i}").touch()
    end = time.monotonic() + 0.5

    def add(thread):
        for i in range(10**6):
            if time.monotonic() > end:
                return
            try:
                (folder / "s0" / f"{thread}-{i}").touch()
            except OSError:
                return

    threads = [threading.Thread(target=add, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    yield folder
    for thread in threads:
        thread.join()


def test_a_folder_is_removed_while_threads_still_write_to_it(busy):
    """As those of a library do for a moment after one of them has met a full disk."""
    time.sleep(0.05)
    discard(busy)
    assert not busy.exists()


def test_a_failed_folder_that_a_library_makes_again_leaves_nothing(tmp_path):
    """The chunks that tensorstore still writes when one has failed make their folders anew."""
    gone = threading.Event()

    def late(folder):
        gone.wait(5)
        time.sleep(0.1)
        (folder / "s0").mkdir(parents=True)
        (folder / "s0" / "0").touch()

    with pytest.raises(OSError, match="full"), atomic_path(tmp_path / "a.n5") as partial:
        partial.mkdir()
        thread = threading.Thread(target=late, args=(partial,))
        thread.start()
        watch = threading.Thread(target=_wait_until_gone, args=(partial, gone))
        watch.start()
        raise OSError("full")
    thread.join()
    watch.join()
    assert list(tmp_path.iterdir()) == []


def _wait_until_gone(path, gone):
    while path.exists():
        time.sleep(0.001)
    gone.set()


def test_what_cannot_be_removed_is_told_at_once(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()

    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.rmtree", refuse)
    begin = time.monotonic()
    with pytest.raises(PermissionError):
        discard(tmp_path / "a")
    assert time.monotonic() - begin < 1


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="broken"), atomic_path(tmp_path / "a.zarr") as partial:
        partial.mkdir()
        (partial / "chunk").touch()
        raise ValueError("broken")
    assert list(tmp_path.iterdir()) == []
