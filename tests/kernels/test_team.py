"""The compiled loop that cores share: every item once, whoever calls, after a fork and under signals."""

import ctypes
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SOURCE = """
#include <stdatomic.h>
#include <string.h>
#include "team.h"
struct marks { atomic_int *item; };
static void mark(const void *loop, long first, long end) {
  const struct marks *marks = loop;
  for (long i = first; i < end; ++i) {
    atomic_fetch_add(&marks->item[i], 1);
    for (volatile int spin = 0; spin < 50; ++spin) {}
  }
}
void count(int *items, long n, long share) {
  const struct marks marks = {(atomic_int *)items};
  share_out(mark, &marks, n, share);
}
"""
Count = Callable[[int, int], np.ndarray]


def build(folder: Path, *options: str) -> Path:
    (folder / "count.c").write_text(SOURCE)
    library = folder / "count.so"
    sources = [str(folder / "count.c"), str(ROOT / "kernels" / "team.c")]
    command = ["cc", "-O2", "-shared", "-fPIC", "-pthread", *options, f"-I{ROOT / 'kernels'}"]
    subprocess.run([*command, "-o", str(library), *sources], check=True)
    return library


@pytest.fixture(params=["1", "2", "5"])
def count(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Count:
    """A loop that counts how often each item is taken, on so many threads."""
    monkeypatch.setenv("OMP_NUM_THREADS", request.param)
    library = ctypes.CDLL(str(build(tmp_path)))

    def run(n: int, share: int) -> np.ndarray:
        items = np.zeros(n, np.int32)
        library.count(ctypes.c_void_p(items.ctypes.data), ctypes.c_long(n), ctypes.c_long(share))
        return items

    return run


def test_every_item_is_taken_once(count: Count) -> None:
    for n in (0, 1, 2, 63, 64, 65, 1000):
        for share in (1, 7, 64, 5000):
            assert (count(n, share) == 1).all(), (n, share)


def test_many_short_loops_one_after_another(count: Count) -> None:
    """Helpers come late into a loop, or to one that has ended, and go to sleep in between."""
    for _ in range(3000):
        assert (count(6, 1) == 1).all()


def test_callers_at_the_same_time(count: Count) -> None:
    wrong: list[np.ndarray] = []

    def call() -> None:
        for _ in range(500):
            items = count(50, 3)
            if (items != 1).any():
                wrong.append(items)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_child_of_fork_can_count_too(count: Count) -> None:
    """It has none of the helpers; OpenMP would wait for them for ever."""
    count(1000, 1)
    child = os.fork()
    if child == 0:  # no exception may leave, or pytest would go on twice
        signal.alarm(60)
        os._exit(0 if all((count(100, 1) == 1).all() for _ in range(100)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_signals_stay_with_the_callers_threads(count: Count) -> None:
    count(1000, 1)
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.005)
        while not seen:
            assert (count(200, 1) == 1).all()
    finally:
        signal.signal(signal.SIGALRM, before)
