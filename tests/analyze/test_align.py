"""What of two traces is compared, and what is said of the rest."""

import numpy as np
import pytest
from synthetic import write_trace
from tensortrace.analyze.align import align
from tensortrace.analyze.compare import compare
from tensortrace.analyze.metrics import measure
from tensortrace.tracer.format import Header, Step, TensorSpec
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace
from tensortrace.tracer.writer import TraceWriter

RESID, LOGITS, Q = Key(0, "resid_out"), Key(None, "logits"), Key(0, "q")


def values(tokens: int = 6, dim: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, dim)).astype(np.float32)


def compared(a: Trace, b: Trace) -> dict[tuple[int, Key], float]:
    """The NRMSE of each pair by our step and key."""
    found = align(a, b)
    figures = measure(found.pieces(), len(found.keys), found.steps)
    return {
        (step, key): figures.nrmse[index, step]
        for index, key in enumerate(found.keys)
        for step in range(found.steps)
        if figures.compared[index, step]
    }


@pytest.fixture
def pair(tmp_path):
    def write(a: dict, b: dict) -> tuple[Trace, Trace]:
        return write_trace(tmp_path / "a.h5", **a), write_trace(tmp_path / "b.h5", **b)

    return write


def test_the_same_tokens_line_up_however_they_were_split_into_steps(pair):
    x = values()
    a, b = pair({"tensors": {RESID: x}, "chunk": 4}, {"tensors": {RESID: x}, "n_prompt": 5})
    assert compared(a, b) == {(0, RESID): 0, (1, RESID): 0}
    assert compared(b, a) == {(0, RESID): 0, (1, RESID): 0}


def test_chunked_prefill_of_every_tensor(record_tiny):
    whole, chunked = record_tiny(n_new=3), record_tiny(n_new=3, chunk=4)
    for a, b in ((whole, chunked), (chunked, whole)):
        found = compared(a, b)
        assert {key.name for _, key in found} >= {"scores", "probs", "m", "l", "m_tiles", "q", "logits"}
        assert len(found) == len(a.tensors) * len(a.steps)
        assert max(found.values()) < 1e-5


def test_more_decode_steps_on_one_side(record_tiny):
    short, long = record_tiny(n_new=3), record_tiny(n_new=12)
    found = compared(long, short)
    assert {step for step, _ in found} == {0, 1, 2}
    assert not any(found.values())
    counts = align(long, short).coverage(measure(align(long, short).pieces(), len(short.tensors), 12))
    assert counts == {
        "compared": 3 * len(short.tensors),
        "only_a": 9 * len(short.tensors),
        "only_b": 0,
        "incomparable": 0,
    }


def test_decoded_tokens_against_the_same_ones_fed_as_a_prompt(record_tiny):
    decoded = record_tiny(n_new=6)
    fed = record_tiny(ids=decoded.tokens.tolist(), n_new=1)
    for a, b in ((decoded, fed), (fed, decoded)):
        found = compared(a, b)
        assert len(found) == len(a.tensors) * len(a.steps)
        assert max(found.values()) < 1e-5


def test_only_tokens_that_both_recorded(pair):
    x, y = values(), values()
    y[1], y[4] = 9, 9
    a, b = pair(
        {"tensors": {RESID: x}, "recorded": [0, 2, 3, 5]},
        {"tensors": {RESID: y}, "recorded": [0, 1, 2, 4, 5]},
    )
    assert compared(a, b) == {(0, RESID): 0}
    assert any("ours recorded 4 of 6 tokens" in note for note in align(a, b).notes)


def test_token_subsets_of_tensors_with_a_key_axis(record_tiny):
    from tensortrace.tracer.selection import Selection

    part = record_tiny(n_new=4, selection=Selection(tokens="2-6,9-"))
    whole = record_tiny(n_new=4)
    found = compared(whole, part)
    assert not any(found.values())
    assert {step for step, _ in found} == {0, 1, 2, 3}


def test_layers_and_tensors_of_one_side_are_named(pair):
    x = values()
    a, b = pair({"tensors": {RESID: x, Key(3, "q"): x, LOGITS: x}}, {"tensors": {RESID: x}})
    found = align(a, b)
    assert found.keys == [RESID]
    assert "only ours has layer 3" in found.notes
    assert "only ours has logits" in found.notes


def test_other_shapes_do_not_fit(pair):
    a, b = pair(
        {"tensors": {RESID: values(dim=4), LOGITS: values()}},
        {"tensors": {RESID: values(dim=5), LOGITS: values()}},
    )
    found = align(a, b)
    assert (found.keys, list(found.problems)) == ([LOGITS], [RESID])
    assert "dim 4" in found.problems[RESID]
    assert "dim 5" in found.problems[RESID]


def test_heads_kept_together_or_apart(pair):
    x = values(dim=8)
    a, b = pair({"tensors": {Q: x.reshape(6, 2, 4)}}, {"tensors": {Q: x}})
    assert compared(a, b) == {(0, Q): 0}
    assert compared(b, a) == {(0, Q): 0}


def test_order_is_ours_where_inputs_are_declared_and_the_vocabulary_s_where_not(tmp_path):
    def write(name: str, inputs: tuple[Key, ...]) -> Trace:
        keys = [LOGITS, Key(1, "q"), RESID]
        specs = [TensorSpec(key, ("token", "dim"), {"dim": 4}, inputs=inputs) for key in keys]
        with TraceWriter(tmp_path / name, Header("test"), specs, [Step(0, "prefill", 0, 6)]) as writer:
            writer.write_tokens(0, range(6))
            for key in keys:
                writer.write(0, key, values())
            writer.end_step(0)
        return Trace(tmp_path / name)

    foreign, known = write("foreign.h5", ()), write("known.h5", (RESID,))
    assert align(foreign, foreign).keys == [RESID, Key(1, "q"), LOGITS]
    assert align(known, foreign).keys == [LOGITS, Key(1, "q"), RESID]


def test_different_prompts_show_the_first_position_that_differs(pair):
    x, texts = values(), [b"The", b" cat", b" s\x1b[1m", b" on", b" the", b" mat"]
    a, b = pair(
        {"tensors": {RESID: x}, "tokens": [5, 6, 7, 8, 9, 1], "pieces": texts, "prompt": "The cat"},
        {"tensors": {RESID: x}, "tokens": [5, 6, 2, 8, 9, 1], "pieces": texts, "prompt": "The dog"},
    )
    refusal = align(a, b).refusal
    assert "position 2 ours has 7 ' s\\x1b[1m', the reference 2" in refusal
    assert "'The cat'" in refusal
    assert "\x1b" not in refusal


def test_generated_texts_that_part_are_compared_until_there(pair):
    x = values()
    a, b = pair(
        {"tensors": {RESID: x}, "tokens": [1, 2, 3, 4, 5, 6], "n_prompt": 3},
        {"tensors": {RESID: x}, "tokens": [1, 2, 3, 4, 9, 9], "n_prompt": 3},
    )
    found = align(a, b)
    assert (found.refusal, found.common) == (None, 4)
    assert "part at token 4" in found.notes[0]
    assert set(compared(a, b)) == {(0, RESID), (1, RESID)}


@pytest.mark.parametrize("longer", ["a", "b"])
def test_one_leading_token_more_is_told_apart_from_another_prompt(pair, longer):
    more = {"tensors": {RESID: values(7)}, "tokens": [1, 5, 6, 7, 8, 9, 10], "pieces": [b"<s>", *6 * [b"x"]]}
    less = {"tensors": {RESID: values(6)}, "tokens": [5, 6, 7, 8, 9, 10], "pieces": 6 * [b"x"]}
    found = align(*pair(*((more, less) if longer == "a" else (less, more))))
    assert found.refusal is None
    assert ("ours has" if longer == "a" else "the reference has") in found.bos


def test_a_leading_word_more_is_another_prompt(pair):
    a, b = pair(
        {"tensors": {RESID: values(3)}, "tokens": [1, 5, 6], "pieces": [b"Well", b"x", b"y"]},
        {"tensors": {RESID: values(2)}, "tokens": [5, 6], "pieces": [b"x", b"y"]},
    )
    assert align(a, b).bos is None
    assert "different token ids" in align(a, b).refusal


def test_a_doubled_first_token(pair):
    a, b = pair(
        {"tensors": {RESID: values(3)}, "tokens": [5, 5, 6], "pieces": [b"x", b"x", b"y"]},
        {"tensors": {RESID: values(2)}, "tokens": [5, 6], "pieces": [b"x", b"y"]},
    )
    assert "twice" in align(a, b).bos


def test_nothing_in_common(pair):
    a, b = pair({"tensors": {RESID: values()}}, {"tensors": {LOGITS: values()}})
    assert "no tensor in common: ours holds resid_out, the reference logits" in align(a, b).refusal


def test_no_token_recorded_in_both(pair):
    a, b = pair(
        {"tensors": {RESID: values()}, "recorded": [0, 1]}, {"tensors": {RESID: values()}, "recorded": [4]}
    )
    assert "no token of them was recorded in both" in align(a, b).refusal


def test_no_finished_step(pair):
    a, b = pair({"tensors": {RESID: values()}, "finished": False}, {"tensors": {RESID: values()}})
    assert "no finished step" in align(a, b).refusal
    assert "no finished step" in align(b, a).refusal


def test_other_models_are_named(pair):
    a, b = pair(
        {
            "tensors": {RESID: values()},
            "model_sha256": "ab" * 32,
            "architecture": "llama",
            "hyperparameters": {"llama.rope.freq_base": 1e4},
        },
        {
            "tensors": {RESID: values()},
            "model_sha256": "cd" * 32,
            "architecture": "qwen2",
            "hyperparameters": {"llama.rope.freq_base": 1e5},
        },
    )
    notes = "\n".join(align(a, b).notes)
    for text in (
        "abababab",
        "ours llama, the reference qwen2",
        "freq_base: ours 10000.0, the reference 100000.0",
    ):
        assert text in notes


@pytest.mark.parametrize("swap", [False, True])
def test_statistics_against_the_whole(record_tiny, swap):
    whole, statistics = record_tiny(n_new=4), record_tiny(n_new=4, stats_only=True)
    found = compared(*((statistics, whole) if swap else (whole, statistics)))
    assert {"q.stats", "q.hist", "q.l2", "scores.stats", "m"} <= {key.name for _, key in found}
    assert len(found) == len(statistics.tensors) * len(statistics.steps)
    assert not any(found.values())


def test_statistics_over_other_numbers_of_keys_do_not_fit(record_tiny):
    whole, chunked = record_tiny(stats_only=True), record_tiny(stats_only=True, chunk=4)
    found = align(whole, chunked)
    assert {key.name for key in found.problems} == {
        "scores.stats",
        "scores.hist",
        "probs.stats",
        "probs.hist",
    }
    assert max(compared(whole, chunked).values()) < 1e-2


def test_axes_that_are_not_the_vocabulary_s(tmp_path):
    def write(name: str) -> Trace:
        specs = [
            TensorSpec(Key(0, "heads first"), ("head", "token", "dim"), {"head": 2, "dim": 3}),
            TensorSpec(Key(0, "no tokens"), ("dim",), {"dim": 3}),
            TensorSpec(Key(2**39, "far"), ("token", "dim"), {"dim": 3}),
        ]
        steps = [Step(0, "prefill", 0, 4), Step(1, "decode", 4, 1), Step(2, "decode", 5, 1)]
        with TraceWriter(tmp_path / name, Header("test"), specs, steps) as writer:
            for step in steps:
                for spec in specs:
                    shape = spec.shape(step.n_tokens, step.kv_len)
                    writer.write(step.index, spec.key, np.full(shape, step.index + 1, np.float32))
                writer.end_step(step.index)
        return Trace(tmp_path / name)

    a, b = write("a.h5"), write("b.h5")
    assert align(a, b).problems == {Key(0, "no tokens"): "a tensor without a token axis"}
    keys = (Key(0, "heads first"), Key(2**39, "far"))
    assert compared(a, b) == {(step, key): 0 for step in range(3) for key in keys}
    assert compare(a, b).verdict == "match"
