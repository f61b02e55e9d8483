"""The C header, and programs that record with it: byte for byte, and also when they crash."""

import hashlib
import os
import re
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from recording import PROMPT, distances, record_trace, worst
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.execute import VARIABLE, execute
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.stream import read_stream
from tensortrace.tracer.trace import Trace

pytestmark = pytest.mark.cxx

EXAMPLE = Path(__file__).parents[2] / "examples" / "engine"
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
LAYER = "attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate ffn_up ffn_down"
Build = Callable[..., Path]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compiles a program in C (or C++ where the compiler is named) and returns it."""
    folder = tmp_path_factory.mktemp("programs")

    def compiled(source: str | Path, *options: str, compiler: str = "cc") -> Path:
        suffix = ".c" if compiler == "cc" else ".cpp"
        if isinstance(source, str):
            name = hashlib.sha256(f"{source}{compiler}{options}".encode()).hexdigest()[:16]
            path = folder / (name + suffix)
            path.write_text(source)
            source = path
        program = folder / source.stem
        standard = "-std=c11" if compiler == "cc" else "-std=c++11"
        command = [compiler, standard, "-O2", *WARNINGS, *options, f"-I{EXAMPLE}", str(source)]
        subprocess.run([*command, "-o", str(program), "-lm", "-pthread"], check=True)
        return program

    return compiled


@pytest.fixture(scope="module")
def tiny_llama(build: Build) -> Path:
    return build(EXAMPLE / "tiny_llama.c")


@pytest.fixture(scope="module")
def weights(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny GGUF as tiny_llama.c reads it."""
    hp = tiny_model.hparam
    sizes = ("block_count", "attention.head_count", "attention.head_count_kv", "attention.key_length")
    sizes += ("embedding_length", "feed_forward_length", "vocab_size")
    numbers = (hp("attention.layer_norm_rms_epsilon"), hp("rope.freq_base"))
    names = ["token_embd"]
    names += [f"blk.{layer}.{name}" for layer in range(hp("block_count")) for name in LAYER.split()]
    path = tmp_path_factory.mktemp("weights") / "tiny.bin"
    with path.open("wb") as file:
        file.write(struct.pack("<7i2f", *map(hp, sizes), *numbers))
        for name in (*names, "output_norm", "output"):
            file.write(tiny_model.weight(f"{name}.weight").tobytes())
    return path


def test_the_c_engine_computes_what_ours_does(
    tiny_llama: Path, weights: Path, tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = execute([str(tiny_llama), str(weights), "8", *map(str, PROMPT)], tmp_path / "c.h5")
    printed = capfd.readouterr().out.split()
    assert done.exit_code == 0
    assert done.status == "tiny_llama exited with 0"
    record_trace(tiny, tmp_path / "ours.h5", n_new=8, tile=16)
    with Trace(tmp_path / "c.h5") as c, Trace(tmp_path / "ours.h5") as ours:
        assert printed == [str(token) for token in ours.generated]
        assert (c.header.engine, c.complete) == ("tiny_llama", True)
        assert (c.steps, list(c.tensors), list(c.tokens)) == (
            ours.steps,
            list(ours.tensors),
            list(ours.tokens),
        )
        found = distances(c, ours)
        assert max(found.values()) <= 1e-5, worst(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.h5", "ours.h5"]


def test_off_means_off(tiny_llama: Path, weights: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [str(tiny_llama), str(weights), "2", "1", "2"]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
    assert list(tmp_path.iterdir()) == []


PROGRAM = """
#define TENSORTRACE_IMPLEMENTATION
#include "tensortrace.h"
#include <stdlib.h>
int main(int argc, char **argv) {
    static const int32_t ids[3] = {7, 8, 9};
    static const int64_t shape[4] = {1, 2, 3, 2};
    static float x[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    int turns = 0;
    tt_meta("engine", "a program");
    tt_step(ids, 3, 0);
    tt_2d("embd", TT_NO_LAYER, TT_F32, x, 3, 4);
    tt_tensor("mine", 2, TT_F16, x, 4, shape);
    tt_tensor_as("q", 1, TT_F32, x, 3, shape + 1, "head,token,dim");
    if (argc > 1 && argv[1][0] == 'c') abort();
    tt_step(NULL, 1, TT_NEXT);
    tt_1d("embd", (turns++, TT_NO_LAYER), TT_F32, x, 4);
    return argc > 1 ? atoi(argv[1]) : turns != (tt_on() ? 1 : 0);
}
"""


@pytest.mark.parametrize("compiler", ["cc", "c++"])
def test_the_header_writes_what_we_read(build: Build, tmp_path: Path, compiler: str) -> None:
    program = build(PROGRAM, compiler=compiler)
    path = tmp_path / "a.ttr"
    subprocess.run([program], check=True, env={**os.environ, VARIABLE: str(path)})
    stream = read_stream(path)
    assert stream.complete
    assert stream.meta == {"engine": "a program"}
    assert [(step.index, step.start, step.tokens) for step in stream.steps] == [
        (0, 0, (7, 8, 9)),
        (1, None, (-1,)),
    ]
    assert [(t.step, t.layer, t.name, t.dtype, t.shape, t.axes) for t in stream.tensors] == [
        (0, None, "embd", "float32", (3, 4), ()),
        (0, 2, "mine", "float16", (1, 2, 3, 2), ()),
        (0, 1, "q", "float32", (2, 3, 2), ("head", "token", "dim")),
        (1, None, "embd", "float32", (4,), ()),
    ]
    assert np.array_equal(stream.load(stream.tensors[2]), np.arange(1.0, 13).reshape(2, 3, 2))
    subprocess.run([program], check=True)  # off: arguments are not evaluated
    subprocess.run([program], check=True, env={**os.environ, VARIABLE: str(path)})
    assert (tmp_path / "a.ttr.1").read_bytes() == path.read_bytes()  # nothing is overwritten


def test_checksums_of_every_length(build: Build, tmp_path: Path) -> None:
    """XXH64 is written out in C: every length of a tail, and of payloads around the stripes."""
    program = build(
        """
        #define TENSORTRACE_IMPLEMENTATION
        #include "tensortrace.h"
        int main(void) {
            static unsigned char bytes[200];
            char text[100];
            for (int i = 0; i < 200; i++) bytes[i] = (unsigned char)(i * 37 + 11);
            for (int i = 0; i < 99; i++) {
                text[i] = (char)('a' + i % 26);
                text[i + 1] = 0;
                tt_meta("k", text);
            }
            for (int i = 0; i < 200; i++) tt_1d("x", i, TT_U8, bytes, i);
            return 0;
        }
        """
    )
    subprocess.run([program], check=True, env={**os.environ, VARIABLE: str(tmp_path / "a.ttr")})
    stream = read_stream(tmp_path / "a.ttr")
    assert (stream.end, len(stream.tensors)) == ("", 200)


def test_a_crash_leaves_what_was_recorded(build: Build, tmp_path: Path) -> None:
    done = execute([str(build(PROGRAM)), "crash"], tmp_path / "a.h5")
    assert done.status.endswith("was killed by SIGABRT")
    assert done.exit_code == 128 + signal.SIGABRT
    assert done.trace.end == "the engine did not close it"
    with Trace(tmp_path / "a.h5") as trace:
        assert not trace.complete
        assert trace.read(Key(1, "q"), 0).shape == (3, 2, 2)


def test_what_the_program_returns_is_passed_on(build: Build, tmp_path: Path) -> None:
    done = execute([str(build(PROGRAM)), "3"], tmp_path / "a.h5")
    assert (done.returncode, done.exit_code, done.trace.end) == (3, 3, "")


def test_programs_that_cannot_be_traced(tmp_path: Path) -> None:
    for arguments, message in (
        ([], "nothing to run"),
        (["/nonexistent/engine"], "cannot run"),
        (["/bin/true"], "recorded nothing: is tensortrace.h in it"),
        (["/bin/false"], r"recorded nothing \(it ended with 1\)"),
    ):
        with pytest.raises(UserError, match=message):
            execute(arguments, tmp_path / "a.h5")
    (tmp_path / "a.h5.ttr").touch()
    with pytest.raises(UserError, match="of an earlier run"):
        execute(["/bin/true"], tmp_path / "a.h5")


def test_threads_write_whole_records(build: Build, tmp_path: Path) -> None:
    program = build(
        """
        #define TENSORTRACE_IMPLEMENTATION
        #include "tensortrace.h"
        #include <pthread.h>
        static void *record(void *start) {
            float values[100];
            for (int i = 0; i < 100; i++) values[i] = (float)(intptr_t)start;
            for (int i = 0; i < 50; i++) tt_1d("x", (int)(intptr_t)start * 50 + i, TT_F32, values, 100);
            return NULL;
        }
        int main(void) {
            pthread_t threads[8];
            for (intptr_t i = 0; i < 8; i++) pthread_create(&threads[i], NULL, record, (void *)i);
            for (int i = 0; i < 8; i++) pthread_join(threads[i], NULL);
            return 0;
        }
        """
    )
    subprocess.run([program], check=True, env={**os.environ, VARIABLE: str(tmp_path / "a.ttr")})
    stream = read_stream(tmp_path / "a.ttr")
    assert (stream.end, len(stream.tensors)) == ("", 400)
    for tensor in stream.tensors:
        assert (stream.load(tensor) == (tensor.layer or 0) // 50).all()


def test_the_example_in_the_documentation(build: Build, tmp_path: Path) -> None:
    program = build(
        """
        #define TENSORTRACE_IMPLEMENTATION
        #include "tensortrace.h"
        int main(void) {
            float x[2] = {1, 2};
            int32_t ids[2] = {7, 8};
            tt_step(ids, 2, 0);
            tt_2d("embd", TT_NO_LAYER, TT_F32, x, 2, 1);
            return 0;
        }
        """
    )
    subprocess.run([program], check=True, env={**os.environ, VARIABLE: str(tmp_path / "a.ttr")})
    written = (tmp_path / "a.ttr").read_bytes()
    text = (EXAMPLE.parents[1] / "docs" / "stream.md").read_text()
    shown = b""
    for line in text.split("```")[1].strip().splitlines():
        for word in re.findall(r"c×8|00×\d+|[0-9a-f]{2}\b", line[:62]):
            if word == "c×8":
                shown += written[len(shown) : len(shown) + 8]
            elif word.startswith("00×"):
                shown += bytes(int(word[3:]))
            else:
                shown += bytes.fromhex(word)
    assert written.startswith(shown)
    assert written[len(shown) :].startswith(b"END ")


@pytest.mark.nvcc
def test_the_header_compiles_for_cuda(tmp_path: Path) -> None:
    source = tmp_path / "engine.cu"
    source.write_text("#define TENSORTRACE_CUDA\n" + PROGRAM.replace("argv[1][0] == 'c'", "false"))
    options = ("-std=c++14", "-Werror", "all-warnings", f"-I{EXAMPLE}")
    subprocess.run(["nvcc", *options, "-c", str(source), "-o", str(tmp_path / "engine.o")], check=True)
