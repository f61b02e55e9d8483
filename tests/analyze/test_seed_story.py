"""The story the project began with: an engine with |Q| of about 60 and scores of about 125 at scale 0.125.

Each of the four scenarios by real traces, each ending in its sentence and in the cause, and the fourth by a
transposed weight, a wrong index and a wrong scale. Heads of 64 make the scale 0.125; the models have a large
Q and K by nature (loud), or only where a norm is missing.
"""

from collections.abc import Callable

import numpy as np
import pytest
from ggufs import write_gguf
from recording import record_trace
from tensortrace.analyze.cause import Injection
from tensortrace.analyze.compare import Comparison, compare
from tensortrace.analyze.find import name_causes
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace

SHAPE = {"heads": 4, "kv_heads": 2, "head_dim": 64, "ff": 128, "seed": 2}
LOUD = 7.0  # the gain before attention that makes |Q| about 60
IDS = tuple(range(100, 116))

Story = Callable[..., Comparison]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Compares our run of a model, with a fault in it, with the reference's, and names the cause."""
    folder = tmp_path_factory.mktemp("story")
    gain, table = np.full(256, LOUD, np.float32), LOUD * np.random.default_rng(3).normal(0, 1, (300, 256))
    norms = [f"blk.{layer}.attn_norm.weight" for layer in (0, 1)]
    quiet = dict.fromkeys(norms, gain / LOUD) | {"token_embd.weight": table.astype(np.float32)}
    models = {
        "loud": write_gguf(folder / "loud.gguf", tensors=dict.fromkeys(norms, gain), **SHAPE),
        "quiet": write_gguf(folder / "quiet.gguf", tensors=quiet, **SHAPE),
        "qk-norm": write_gguf(
            folder / "qk.gguf", "qwen3", tensors=dict.fromkeys(norms, gain), qk_norm=True, **SHAPE
        ),
    }

    def run(model: str, fault: str, name: str) -> Trace:
        path = folder / f"{name}.h5"
        path.unlink(missing_ok=True)
        change = Injection.parse(fault).apply if fault else lambda graph: graph
        record_trace(Model(models[model]), path, IDS, n_new=2, tile=8, change=change)
        return Trace(path)

    def told(model: str, fault: str) -> Comparison:
        a, b = run(model, fault, "ours"), run(model, "", "reference")
        return name_causes(compare(a, b), a, b, Model(models[model]))

    return told


def figures(found: Comparison, layer: int = 0) -> tuple[float, float, float]:
    """|Q| on both sides and the largest score of ours."""
    row = next(row for row in found.rows() if row.key == Key(layer, "q_rope"))
    scores = found.alignment.a.trace.read(Key(layer, "scores"), 0)
    return row.mag_a, row.mag_b, float(scores.max())


def test_1_the_reference_is_as_large(story: Story) -> None:
    found = story("loud", "softmax_no_max@1")
    ours, theirs, top = figures(found)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert 50 < ours < 70
    assert top > 100  # beyond 88.7, where exp overflows in float32
    assert found.scenario.number == 1
    assert "large on both sides, normal for this model" in found.scenario.sentence
    assert "softmax, V or the output" in found.scenario.sentence
    assert found.causes[0].id == "softmax_no_max"


@pytest.mark.parametrize(
    ("model", "fault", "first"),
    [
        ("quiet", "norm_missing@attn_norm", "attn_norm"),  # of an embedding that is not of unit size
        ("qk-norm", "qk_norm_missing", "q_norm"),
    ],
)
def test_2_the_reference_is_small(story: Story, model: str, fault: str, first: str) -> None:
    found = story(model, fault)
    ours, theirs, top = figures(found)
    assert 50 < ours < 70
    assert theirs < 12
    assert top > 80
    assert found.scenario.number == 2
    assert f"a normalisation or bias is missing; the two part at L00 {first}" in found.scenario.sentence
    assert found.scenario.hypotheses["A"].yes
    assert (found.causes[0].id, found.causes[0].tensor) == (Injection.parse(fault).cause.id, first)


@pytest.mark.parametrize(
    ("fault", "first"),
    [("fa_merge@0", "attn"), ("gqa_map@0=v_tile", "attn"), ("weight_transposed@0,attn_out", "attn_out")],
)
def test_3_scores_agree(story: Story, fault: str, first: str) -> None:
    found = story("quiet", fault)
    assert found.scenario.number == 3
    assert "scores agree, so Q·K is right" in found.scenario.sentence
    assert f"L00 {first} departs first" in found.scenario.sentence
    assert found.causes[0].id == Injection.parse(fault).cause.id


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("weight_transposed@0,q", "they inherit it from L00 q, where the two part first"),
        ("kv_slot@0", "Q·K is wrong (weights, indexing, transpose, cache)"),
        ("gqa_map@0", "Q·K is wrong (weights, indexing, transpose, cache)"),
        ("attn_scale@0=1", "by one factor: the scale is wrong"),
    ],
)
@pytest.mark.parametrize("model", ["loud", "quiet"])
def test_4_scores_differ(story: Story, model: str, fault: str, sentence: str) -> None:
    found = story(model, fault)
    assert found.scenario.number == 4
    assert sentence in found.scenario.sentence
    assert found.causes[0].id == Injection.parse(fault).cause.id
    assert found.causes[0].confidence > 0.999
