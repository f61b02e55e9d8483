import json

import numpy as np
import pytest
from commands import run
from ggufs import write_gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    bad = np.ones((64, 64), np.float32)
    bad[1, 2] = np.nan
    return write_gguf(
        tmp_path_factory.mktemp("m") / "m.gguf",
        qtype="Q8_0",
        tensors={"blk.1.attn_output.weight": bad[:64, :64]},
    )


def test_the_list_without_values(model):
    told = run("weights", model).out
    assert "random llama  llama, 21 tensors" in told
    assert "blk.0.attn_q.weight" in told
    assert "first values" not in told
    data = json.loads(run("weights", model, "--json", "-").out)
    entry = next(e for e in data["tensors"] if e["name"] == "blk.0.attn_q.weight")
    assert entry == {"name": "blk.0.attn_q.weight", "type": "Q8_0", "shape": [64, 64], "bytes": 64 * 2 * 34}


def test_values_are_what_an_engine_sees(model, monkeypatch):
    from tensortrace.tracer.cli import weights
    from tensortrace.tracer.gguf import Model

    whole = json.loads(run("weights", model, "blk.0.*", "--json", "-").out)["tensors"]
    monkeypatch.setattr(weights, "PART", 640)  # ten rows at a time
    assert [e["name"] for e in whole] == [name for name in Model(model).names if name.startswith("blk.0.")]
    for entry, parts in zip(
        whole, json.loads(run("weights", model, "blk.0.*", "--json", "-").out)["tensors"], strict=True
    ):
        values = Model(model).weight(entry["name"]).astype(np.float64)
        assert entry["first"] == pytest.approx(values.ravel()[:4].tolist())
        for figure, right in (
            ("min", values.min()),
            ("max", values.max()),
            ("mean", values.mean()),
            ("rms", np.sqrt((values**2).mean())),
            ("count", values.size),
        ):
            assert entry[figure] == pytest.approx(right, rel=1e-9, abs=1e-12)
            assert parts[figure] == pytest.approx(right, rel=1e-9, abs=1e-12)


def test_one_tensor_shows_a_corner(model):
    told = run("weights", model, "blk.1.ffn_gate.weight").out
    assert "out \\ in" in told
    assert "\n95 " in told  # the last row
    assert run("weights", model, "output_norm.weight").code == 0


def test_nan_is_counted(model):
    told = run("weights", model, "blk.1.attn_output.weight", "--json", "-").out
    assert json.loads(told)["tensors"][0]["nan"] > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [("blk.0.attn_q.weigh", "is blk.0.attn_q.weight meant?"), ("zz*", "no tensor matches zz*")],
)
def test_unknown_names(model, name, message):
    outcome = run("weights", model, name)
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert message in outcome.err


def test_not_a_model(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    assert run("weights", tmp_path / "x.gguf").code == 2


def test_what_an_engine_loaded(model, tmp_path):
    from tensortrace.tracer.gguf import Model

    loaded = Model(model)
    q, v = "blk.0.attn_q.weight", "blk.0.ffn_down.weight"
    np.savez(tmp_path / "right.npz", **{q: loaded.weight(q), v: loaded.weight(v)})
    right = run("weights", model, "--against", tmp_path / "right.npz")
    assert (right.code, right.out.count("equal")) == (0, 4)
    folder = tmp_path / "dump"
    folder.mkdir()
    np.save(folder / f"{q}.npy", loaded.weight(q))
    np.save(folder / f"{v}.npy", loaded.weight(v).T.copy())
    wrong = run("weights", model, "--against", folder, "--json", tmp_path / "w.json")
    assert wrong.code == 1
    assert "transposed" in wrong.out
    checked = json.loads((tmp_path / "w.json").read_text())["checked"]
    assert [(entry["name"], entry["kind"]) for entry in checked] == [(q, "equal"), (v, "transposed")]
    assert checked[0]["nrmse"] == 0


def test_a_named_weight_against_its_first_values(model, tmp_path):
    from tensortrace.tracer.gguf import Model

    first = Model(model).weight("blk.1.attn_v.weight").reshape(-1)[:8]
    (tmp_path / "log.txt").write_text(", ".join(f"{value:.7f}" for value in first))
    assert run("weights", model, "blk.1.attn_v.weight", "--against", tmp_path / "log.txt").code == 0
    told = run("weights", model, "blk.0.attn_v.weight", "--against", tmp_path / "log.txt")
    assert (told.code, "other_layer" in told.out) == (1, True)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("blk.0.attn_q.weigh", "1 2 3 4", "is blk.0.attn_q.weight meant?"),
        ("output_norm.weight", "1 2", "has 2"),
    ],
)
def test_nothing_compared_is_trouble(model, tmp_path, name, text, message):
    (tmp_path / "x.txt").write_text(text)
    outcome = run("weights", model, name, "--against", tmp_path / "x.txt")
    assert (outcome.code, len(outcome.err.splitlines())) == (2, 1)
    assert message in outcome.err
    assert run("weights", model, "--against", tmp_path / "none.npy").code == 2
    (tmp_path / "empty").mkdir()
    assert run("weights", model, "--against", tmp_path / "empty").code == 2
