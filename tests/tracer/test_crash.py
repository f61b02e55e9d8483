"""Recordings that end badly: killed, interrupted, out of disk.  What was written stays readable."""

import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from ggufs import write_gguf
from recording import record_trace
from tensortrace.tracer.trace import Trace

TESTS = Path(__file__).parents[1]
RECORD = """
import signal
import sys
from pathlib import Path
from recording import record_trace
from tensortrace.tracer.errors import TraceError

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
model, path = map(Path, sys.argv[1:3])
try:
    record_trace(model, path, range(60), n_new=int(sys.argv[3]), on_token=lambda t: print(t, flush=True))
except TraceError as error:
    sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that a step writes 300 kB."""
    folder = tmp_path_factory.mktemp("crash")
    return write_gguf(folder / "model.gguf", layers=4, heads=8, kv_heads=4, head_dim=64, ff=1536)


def start(model: Path, path: Path, new: int, **options) -> subprocess.Popen:
    """A process that records; it prints a line for each new token."""
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", RECORD, str(model), str(path), str(new)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def check_part(path: Path) -> int:
    """How many steps an incomplete trace holds; all that they say they hold is there and right."""
    with Trace(path) as trace:
        assert not trace.complete
        assert list(trace.damaged()) == []
        flushed = trace.flushed
        assert [step.index for step in flushed] == list(range(len(flushed)))
        assert all(trace.has(key, step.index) for key in trace.tensors for step in flushed)
        assert len(trace.tokens) == (flushed[-1].kv_len if flushed else 0)
        assert len(trace.generated) == len(flushed)
    return len(flushed)


def test_killed_at_any_moment(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["recording"])  # thirty starts of Python would take most of a minute
    randomness, reached = random.Random(0), []
    for attempt in range(30):
        path = tmp_path / f"{attempt}.h5"
        process = processes.Process(target=record_trace, args=(model, path, range(60)), kwargs={"n_new": 400})
        process.start()
        while not path.exists():
            time.sleep(0.002)
            assert process.is_alive()
        time.sleep(randomness.uniform(0, 0.6))
        process.kill()
        process.join()
        reached.append(check_part(path))
        path.unlink()
    assert max(reached) > 1, "the kills all came before there was something to lose"


def test_what_was_flushed_before_a_kill_is_there(model: Path, tmp_path: Path) -> None:
    """At most the steps of the last moments are lost: those that the writer still gathers."""
    path = tmp_path / "a.h5"
    process = start(model, path, 400)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(1)
    before = len(Trace(path).flushed)
    process.kill()
    process.communicate()
    assert 0 < before <= check_part(path)


def test_interrupted_from_the_keyboard(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    process = start(model, path, 400)
    assert process.stdout is not None
    shown = [process.stdout.readline() for _ in range(11)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    # an interrupted run has time to write out what it had: all steps whose token was shown but the last
    assert check_part(path) >= len(shown) + len(rest.splitlines()) - 1


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes, where this system lets us mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True
    )
    try:
        yield folder
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def may_mount(tmp_path: Path) -> bool:
    with small_disk(tmp_path / "probe", 1 << 20) as folder:
        return os.path.ismount(folder)


def test_a_file_that_may_not_grow(model: Path, tmp_path: Path) -> None:
    """The system refuses a write part of the way (here by a limit on the size of files)."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    path = tmp_path / "a.h5"
    process = start(model, path, 200, preexec_fn=limit)
    while not path.exists():
        time.sleep(0.002)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (path.stat().st_size // 2, resource.RLIM_INFINITY))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("\n") == 1
    assert f"writing {path} failed: File too large; the" in errors
    check_part(path)


def test_a_disk_that_fills_up(model: Path, tmp_path: Path) -> None:
    if not may_mount(tmp_path):
        pytest.skip("mounting a small disk needs privileges; the test above covers the rest")
    with small_disk(tmp_path / "disk", 64 << 20) as disk:
        process = start(model, disk / "a.h5", 60)  # about 30 MB
        while not (disk / "a.h5").exists():
            time.sleep(0.002)
        with suppress(OSError), (disk / "other").open("wb", buffering=0) as other:
            while other.write(bytes(1 << 16)):
                pass
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert errors.count("\n") == 1
        assert "the disk is full; the" in errors
        check_part(disk / "a.h5")


def test_a_disk_that_is_too_small(model: Path, tmp_path: Path) -> None:
    if not may_mount(tmp_path):
        pytest.skip("mounting a small disk needs privileges; test_writer.py covers the rest")
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        process = start(model, disk / "a.h5", 60)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "the trace needs" in errors
        assert list(disk.iterdir()) == []
