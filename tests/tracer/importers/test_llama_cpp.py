"""llama.cpp's logs, in every way in which it has printed, against the CPU engine on the same model.

The logs hold the numbers of a real run of llama.cpp: see tests/golden/logs/README.md.
"""

from pathlib import Path

import numpy as np
import pytest
from ggufs import write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recording import record_trace
from tensortrace.tracer.assemble import Assembled
from tensortrace.tracer.errors import UserError
from tensortrace.tracer.gguf import Model
from tensortrace.tracer.importer import Options, choose, import_dump
from tensortrace.tracer.names import Key
from tensortrace.tracer.trace import Trace

LOGS = Path(__file__).parents[2] / "golden" / "logs"
IDS = (84, 104, 101, 32, 259, 260, 271, 97)
DIALECTS = {  # what its printer says: decimals, what the sum is of, which further sums
    "2024-04-first-three": (4, None, ()),
    "2024-08-sum-of-printed": (4, "printed", ("sum",)),
    "2025-09-sum-of-all": (4, "all", ("sum",)),
    "2025-11-full-values": (8, "all", ("sum",)),
    "2026-01-sum-and-sum-sq": (4, "all", ("sum", "sum_sq")),
    "2026-03-common-debug": (4, "all", ("sum",)),
}
DERIVED = ("m", "l", "m_tiles", "l_tiles")  # llama.cpp has no such nodes
SHORTENED = {"2025-11-full-values": 17, "2026-01-sum-and-sum-sq": 9}  # fewer tensors, to be small


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("model") / "logs.gguf"
    return Model(write_gguf(path, layers=1, heads=4, kv_heads=2, head_dim=8, ff=40))


@pytest.fixture(scope="module")
def exact(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    path = tmp_path_factory.mktemp("exact") / "exact.h5"
    record_trace(model, path, IDS, n_new=2)
    return Trace(path)


def load(name: str, tmp_path: Path, **options) -> tuple[Assembled, Trace]:
    done = import_dump(LOGS / f"{name}.log", tmp_path / "a.h5", Options(**options))
    return done, Trace(tmp_path / "a.h5")


@pytest.mark.parametrize("name", DIALECTS)
def test_printed_values_are_those_of_an_exact_run(
    name: str, model: Model, exact: Trace, tmp_path: Path
) -> None:
    _, trace = load(name, tmp_path, model=model)
    decimals, _, _ = DIALECTS[name]
    shared = [key for key in exact.tensors if key in trace]
    assert len(shared) == SHORTENED.get(name, 20)
    for key in shared:
        spec = trace.tensors[key]
        assert spec.axes == exact.tensors[key].axes
        assert spec.conventions["decimals"] == decimals
        for step in trace.steps:
            printed, true = trace.read(key, step.index), exact.read(key, step.index)
            shown = ~np.isnan(printed)
            assert shown.any(), key
            infinite = np.isinf(true[shown])
            assert np.array_equal(printed[shown][infinite], true[shown][infinite]), key
            with np.errstate(invalid="ignore"):  # -inf where masked
                off = np.nan_to_num(np.abs(printed - true)).max()
            assert off <= spec.conventions["rounding"] + 2e-6, (key, off)


@pytest.mark.parametrize("name", DIALECTS)
def test_sums_are_those_of_an_exact_run(name: str, model: Model, exact: Trace, tmp_path: Path) -> None:
    _, trace = load(name, tmp_path, model=model)
    _, sum_of, sums = DIALECTS[name]
    checked = 0
    for key in (key for key in exact.tensors if key in trace):
        conventions = trace.tensors[key].conventions
        elided = np.isnan(trace.read(key, 0)).any() and key.name != "logits"
        assert not (sum_of and elided) or conventions.get("sum_of", sum_of) in (sum_of, "all")
        for which in sums:
            for step, stated in conventions.get(which, {}).items():
                true = exact.read(key, int(step)).astype(np.float64)
                true = true[-conventions.get("computed_rows", {}).get(step, len(true)) :]
                if conventions["sum_of"] == "printed":
                    shown = trace.read(key, int(step))[-len(true) :]
                    true = true[~np.isnan(shown)]
                values = true if which == "sum" else true**2
                assert abs(values.sum() - stated) <= 1e-5 * np.abs(values).sum() + 1e-4, (key, which)
                checked += 1
    assert checked >= 8 * len(sums)


def test_steps_tokens_and_partial_values(tmp_path: Path) -> None:
    done, trace = load("2026-03-common-debug", tmp_path, tokens=(*IDS, 59))
    assert [(step.phase, step.start, step.n_tokens) for step in trace.steps] == [
        ("prefill", 0, 8),
        ("decode", 8, 1),
    ]
    assert list(trace.tokens) == [*IDS, 59]
    assert trace.header.engine == "llama.cpp"
    assert done.notes == ("left out 30 nodes that show another one's values, or a tensor before its bias",)
    q = trace.tensors[Key(0, "q")]
    assert (q.axes, q.sizes, q.source) == (
        ("token", "head", "dim"),
        {"head": 4, "dim": 8},
        "Qcur-0 (RESHAPE)",
    )
    assert q.conventions["partial"] is True
    assert q.conventions["rounding"] == 5e-5
    shown = ~np.isnan(trace.read(Key(0, "q"), 0))
    assert shown[:, :, [0, 1, 2, 5, 6, 7]][[0, 1, 2, 5, 6, 7]].all()
    assert shown.sum() == 6 * 4 * 6
    # nobody reads the other rows of the last layer, so llama.cpp does not compute them
    mid = trace.tensors[Key(0, "resid_mid")].conventions
    assert (mid["rows"], mid["computed_rows"]) == ("last", {"0": 1})
    assert np.isnan(trace.read(Key(0, "resid_mid"), 0)[:7]).all()
    # without the model raw scores stay raw, under their own name
    assert Key(0, "scores") not in trace
    assert trace.tensors[Key(0, "kq")].axes == ("head", "query", "key")
    assert {"kq", "norm", "norm#2", "cache_k (view)"} <= set(done.own_names)


def test_flash_attention(model: Model, exact: Trace, tmp_path: Path) -> None:
    """No scores then; attention computes with half precision."""
    _, trace = load("flash-attention", tmp_path)
    attn = trace.tensors[Key(0, "attn")]
    assert (attn.source, attn.axes) == ("node_23 (FLASH_ATTN_EXT)", ("token", "head", "dim"))
    shown = ~np.isnan(trace.read(Key(0, "attn"), 0))
    off = np.abs(trace.read(Key(0, "attn"), 0) - exact.read(Key(0, "attn"), 0))[shown]
    assert off.max() < 2e-3


def test_recognised(tmp_path: Path) -> None:
    for path in LOGS.glob("*.log"):
        assert choose(path, Options()).FORMAT == "llama.cpp"
    prose = tmp_path / "notes.txt"
    prose.write_text("debug: q = (nothing)")
    with pytest.raises(UserError, match="in no format that is recognised"):
        choose(prose, Options())


def changed(tmp_path: Path, *changes: tuple[str, str], name: str = "2025-09-sum-of-all") -> Path:
    text = (LOGS / f"{name}.log").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path / "changed.log"
    path.write_text(text)
    return path


def test_a_printed_nan_is_told_from_what_was_not_printed(tmp_path: Path) -> None:
    row = "[     -0.3821,      -1.1928,       1.6918, ...,"
    stop = "encountered NaN - aborting\n"
    head, _ = (LOGS / "2025-09-sum-of-all.log").read_text().split("sum =", 1)
    path = tmp_path / "nan.log"
    path.write_text(
        head.replace(row, "[     -0.3821,          nan,       1.6918, ...,") + "sum = nan\n" + stop
    )
    done = import_dump(path, tmp_path / "a.h5", Options())
    assert done.end == "llama.cpp stopped because a sum was NaN"
    with Trace(tmp_path / "a.h5") as trace:
        conventions = trace.tensors[Key(None, "embd")].conventions
        assert not trace.complete
    assert (conventions["nan"], conventions["sum"]) == ({"0": [1]}, {"0": "nan"})


def test_printed_nans_are_placed_in_what_is_stored(tmp_path: Path) -> None:
    """The last layer has its last row only, and the probabilities are padded to 256 keys."""
    text = (LOGS / "2026-03-common-debug.log").read_text()
    for title, row in (("kq_soft_max-0", 1), ("ffn_inp-0", 0)):
        head, block = text.split(f" {title} = ", 1)
        rows = block.split("[  ", row + 1)
        rows[-1] = "nan," + rows[-1].split(",", 1)[1].replace("sum = ", "sum = nan\n", 1)
        text = f"{head} {title} = {'[  '.join(rows)}"
    path = tmp_path / "nan.log"
    path.write_text(text)
    import_dump(path, tmp_path / "a.h5", Options())
    with Trace(tmp_path / "a.h5") as trace:
        for name, expected in (("probs", 8), ("resid_mid", 7 * 32)):
            assert trace.tensors[Key(0, name)].conventions["nan"]["0"] == [expected]


@pytest.mark.parametrize("prefix", ["", "0.00.012.345 I "])
def test_ids_that_are_echoed_are_known(tmp_path: Path, prefix: str) -> None:
    echoed = "".join(f"{prefix}  {token}\n" for token in IDS)
    log = (LOGS / "2026-03-common-debug.log").read_text()
    for count, known in ((8, True), (9, False)):
        (tmp_path / "a.log").write_text(f"{prefix}number of input tokens = {count}\n{echoed}{log}")
        import_dump(tmp_path / "a.log", tmp_path / "a.h5", Options())
        with Trace(tmp_path / "a.h5") as trace:
            assert list(trace.tokens) == ([*IDS, -1] if known else [-1] * 9)


def test_a_log_that_is_cut_off_says_so(tmp_path: Path) -> None:
    whole = (LOGS / "2025-09-sum-of-all.log").read_bytes()
    ends = set()
    for size in range(2500, len(whole), 4999):
        (tmp_path / "cut.log").write_bytes(whole[:size])
        done = import_dump(tmp_path / "cut.log", tmp_path / "a.h5", Options())
        ends.add(done.end.split(" inside")[0])
        assert bool(done.end) != Trace(tmp_path / "a.h5").complete
    assert "the log is cut off" in ends


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[     -0.3821,", "[     -0.3821, 1.0, 2.0, 3.0, 4.0,", None),
        ("-1.1928,       1.6918, ...,", "-1.1928,       1.6918,", "6 entries were printed of 32"),
        ("-1.1928,", "-1.19x8,", "is no number"),
        ("],\n", "\n", "is no row of numbers"),
        ("                                     ]\n", "", "a bracket is not closed"),
        ("{32, 8, 1, 1}\n", "{32, 2, 1, 1}\n", "entries were printed of 2"),
        ("{32, 8, 1, 1}\n", "{0, 8, 1, 1}\n", None),
        ("{32, 8, 1, 1}\n", "{99999999999, 8, 1, 1}\n", None),
    ],
)
def test_damage_is_named_or_left_out(tmp_path: Path, old: str, new: str, message: str | None) -> None:
    path = changed(tmp_path, (old, new))
    if message is None:
        import_dump(path, tmp_path / "a.h5", Options())
        return
    with pytest.raises(UserError, match=message):
        import_dump(path, tmp_path / "a.h5", Options())
    assert not (tmp_path / "a.h5").exists()


LINES = (LOGS / "2024-08-sum-of-printed.log").read_text().splitlines(keepends=True)[:120]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mangled_logs_are_imported_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    lines = list(LINES)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        action = data.draw(st.sampled_from(["drop", "double", "swap", "garble"]))
        if action == "drop" and len(lines) > 1:
            del lines[at]
        elif action == "double":
            lines.insert(at, lines[at])
        elif action == "swap":
            lines[at - 1], lines[at] = lines[at], lines[at - 1]
        elif action == "garble":
            column = data.draw(st.integers(0, len(lines[at])))
            lines[at] = lines[at][:column] + data.draw(st.text(max_size=5)) + lines[at][column + 1 :]
    (tmp_path / "x.log").write_text("".join(lines), encoding="utf-8")
    try:
        import_dump(tmp_path / "x.log", tmp_path / "x.h5", Options(format="llama.cpp"))
    except UserError:
        return
    with Trace(tmp_path / "x.h5") as trace:
        assert list(trace.damaged()) == []
