"""The CPU engine on SmolLM2: against the frozen reference, against itself computed in other ways."""

from collections.abc import Callable

import numpy as np
import pytest
import smollm2_golden as golden
from recording import distances, nrmse, record_trace, worst
from tensortrace.kernels import attention
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.selection import Selection
from tensortrace.tracer.trace import Trace

Recorder = Callable[..., Trace]
PER_ROW = "embd attn_norm q k v q_rope k_rope attn attn_out resid_mid act resid_out final_norm logits"


@pytest.fixture(scope="module")
def record_smollm2(smollm2_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """Records the prompt of the golden run and what follows; `name` is for the file."""
    folder = tmp_path_factory.mktemp("smollm2")

    def recorded(name: str, ids=golden.PROMPT, **options) -> Trace:
        record_trace(smollm2_model, folder / name, ids, **{"tile": golden.TILE, "n_new": 5, **options})
        return Trace(folder / name)

    return recorded


@pytest.fixture(scope="module")
def plain(record_smollm2: Recorder) -> Trace:
    return record_smollm2("plain.h5", n_new=golden.N_NEW)


def test_equals_frozen_transformers(plain: Trace) -> None:
    stored = np.load(golden.PATH)
    assert np.array_equal(plain.generated, stored["generated"])
    steps = [{key: plain.read(key, step.index) for key in plain.tensors} for step in plain.steps]
    found = golden.distance(golden.digests(steps), stored["digests"])
    assert found.max() <= 2e-5  # twice the limit on the NRMSE: four projections only estimate it


def test_float64_differs_by_rounding(record_smollm2: Recorder, plain: Trace) -> None:
    exact = record_smollm2("float64.h5", dtype="float64", storage="float64")
    found = distances(plain, exact)
    assert max(found.values()) < 1e-4, worst(found)
    assert np.median(list(found.values())) < 1e-5


def test_two_pass_softmax_gives_the_same(record_smollm2: Recorder, plain: Trace) -> None:
    found = distances(plain, record_smollm2("two-pass.h5", softmax="two-pass"))
    # one op differs by 1e-6 at most (below); thirty layers amplify their rounding differences
    assert max(found.values()) <= 1e-5, worst(found)
    assert np.median(list(found.values())) <= 2e-6


def test_each_attention_gives_the_same_by_two_passes(plain: Trace) -> None:
    """From the same inputs, online and two-pass softmax agree to 1e-6 in every layer, prefill and decode."""
    for layer in range(30):
        for step in (0, 3):
            q = plain.read(Key(layer, "q_rope"), step)
            k, v = (plain.rows_until(Key(layer, name), step) for name in ("k_rope", "v"))
            options = {"scale": q.shape[-1] ** -0.5, "tile": 16, "want": set(attention.EXTRAS)}
            online, two_pass = (attention.cpu(q, k, v, softmax=s, **options) for s in ("online", "two-pass"))
            for name, array in online.items():
                assert nrmse(array, two_pass[name]) <= 1e-6, (layer, step, name)


def test_chunked_prefill_gives_the_same(record_smollm2: Recorder, plain: Trace) -> None:
    chunked = record_smollm2("chunked.h5", chunk=20, n_new=1)
    assert [step.n_tokens for step in chunked.steps] == [20, 20, 8]
    for key in chunked.tensors:
        if key.name in PER_ROW.split():
            assert nrmse(chunked.rows_until(key, 2), plain.rows_until(key, 0)) <= 1e-5, key
    for step in chunked.steps:
        rows = slice(step.start, step.kv_len)
        probs, whole = chunked.read(Key(7, "probs"), step.index), plain.read(Key(7, "probs"), 0)
        assert nrmse(probs, whole[:, rows, : step.kv_len]) <= 1e-5


def test_decode_equals_prefill_of_the_same_tokens(record_smollm2: Recorder, plain: Trace) -> None:
    whole = record_smollm2("prefill.h5", plain.tokens.tolist(), n_new=1)
    for key in whole.tensors:
        if key.name in PER_ROW.split():
            assert nrmse(plain.rows_until(key, 16), whole.read(key, 0)) <= 1e-5, key
        elif key.name in ("scores", "probs"):
            row, decoded = whole.read(key, 0)[:, -1:, :], plain.read(key, 16)
            assert nrmse(decoded, row) <= 1e-5, key


def test_softmax_state_is_consistent_with_the_scores(plain: Trace) -> None:
    for layer in (0, 13, 29):
        for step in plain.steps:
            read = {
                name: plain.read(Key(layer, name), step.index).astype(np.float64)
                for name in ("scores", "m", "l", "m_tiles", "l_tiles", "probs", "attn")
            }
            check_softmax(read, plain.rows_until(Key(layer, "v"), step.index))


def check_softmax(read: dict[str, np.ndarray], v: np.ndarray) -> None:
    """m, l, their tiles, probs and attn are what float64 makes of the recorded scores and values."""
    scores = read["scores"]
    heads, _, keys = scores.shape
    for tile, end in enumerate(range(golden.TILE, keys + golden.TILE, golden.TILE)):
        m = scores[..., :end].max(-1)
        l = np.exp(scores[..., :end] - m[..., None]).sum(-1)  # noqa: E741
        assert np.array_equal(read["m_tiles"][tile], m)
        assert nrmse(read["l_tiles"][tile], l) <= 1e-6
    assert np.array_equal(read["m"], m)
    assert nrmse(read["l"], l) <= 1e-6
    probs = np.exp(scores - m[..., None]) / l[..., None]
    assert nrmse(read["probs"], probs) <= 1e-6
    assert np.abs(read["probs"].sum(-1) - 1).max() <= 1e-6
    values = v.astype(np.float64).repeat(heads // v.shape[1], axis=1)  # query heads share KV heads
    assert nrmse(read["attn"], np.einsum("hqk,khd->qhd", probs, values)) <= 1e-6


def test_recording_a_few_tensors_does_not_change_them(record_tiny: Recorder) -> None:
    every = record_tiny(n_new=3)
    few = record_tiny(n_new=3, selection=Selection(tensors="probs,logits", layers="1"))
    assert {key.name for key in few.tensors} == {"probs", "logits"}
    for step in few.steps:
        for key in few.tensors:
            assert np.array_equal(few.read(key, step.index), every.read(key, step.index), equal_nan=True)
