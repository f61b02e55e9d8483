"""Kernels captured as a graph: a layer of decode, against the CPU functions in float64."""

import numpy as np
from cuda_arrays import draw, exact, nrmse, put_blocks, random_blocks
from tensortrace.kernels import add, attention, dequantize, embedding, glu, linear, rms_norm, rope

EVERYTHING = frozenset(attention.EXTRAS)
ROTATION = {"base": 1e4, "dims": 16, "pairing": "interleaved"}
ATTENDING = {"scale": 0.25, "tile": 16, "want": EVERYTHING}


def layer_weights():
    shapes = {"q": (64, 64), "k": (32, 64), "v": (32, 64), "o": (64, 64)}
    shapes |= {"gate": (96, 64), "up": (96, 64), "down": (64, 96), "embd": (50, 64)}
    return {n: random_blocks("Q4_1", *shape, seed=i) for i, (n, shape) in enumerate(shapes.items())}


def layer_on_cpu(ids, weights, gain):
    """Every result of the last of `ids`, from all of them at once in float64."""
    w = {name: exact(dequantize.cpu(blocks)) for name, blocks in weights.items()}
    r = {"embd": embedding.cpu(ids, w["embd"])}
    r["norm"] = rms_norm.cpu(r["embd"], exact(gain), eps=1e-5)
    q, k = (linear.cpu(r["norm"], w[name], heads=heads) for name, heads in (("q", 4), ("k", 2)))
    v = linear.cpu(r["norm"], w["v"], heads=2)
    r["q"], r["k"] = (rope.cpu(x, np.arange(len(ids)), **ROTATION) for x in (q, k))
    attended = attention.cpu(r["q"], r["k"], v, **ATTENDING)
    r["resid"] = r["embd"] + linear.cpu(attended["out"], w["o"])
    r["ffn_norm"] = rms_norm.cpu(r["resid"], exact(gain), eps=1e-5)
    r["act"] = glu.cpu(linear.cpu(r["ffn_norm"], w["gate"]), linear.cpu(r["ffn_norm"], w["up"]))
    r["end"] = r["resid"] + linear.cpu(r["act"], w["down"])
    last = {name: array[-1:] for name, array in r.items()}
    for name, array in attended.items():
        query_axis = {"out": 0, "m_tiles": 2, "l_tiles": 2}.get(name, 1)
        last[name] = array.take([-1], query_axis)
    return last


def layer_step(device, weights, gain, token, position, kv_len):
    """A decode step without allocations, and the arrays that it fills."""
    w = {name: put_blocks(device, blocks) for name, blocks in weights.items()}
    gain = device.put(gain)
    r = {name: device.empty((1, blocks.shape[0]), np.float32) for name, blocks in weights.items()}
    r |= {name: device.empty((1, 64), np.float32) for name in ("embd", "norm", "resid", "ffn_norm", "end")}
    r["act"] = device.empty((1, 96), np.float32)
    raw = [r[name].reshape(1, heads, 16) for name, heads in (("q", 4), ("k", 2), ("v", 2))]
    rotated = r["q"], r["k"] = tuple(device.empty(x.shape, np.float32) for x in raw[:2])
    cache = tuple(device.empty((40, 2, 16), np.float32) for _ in "kv")
    attended = attention.cuda_outputs((1, 4, 16), (40, 2, 16), tile=16, want=EVERYTHING, dtype=np.float32)

    def step():
        embedding.cuda(token, w["embd"], out=r["embd"])
        rms_norm.cuda(r["embd"], gain, eps=1e-5, out=r["norm"])
        linear.cuda_many(r["norm"], [w[name] for name in "qkv"], [None] * 3, out=raw)
        rope.cuda_cached(*raw, position, **ROTATION, cache=cache, kv_len=kv_len, out=rotated)
        attention.cuda(r["q"], *cache, **ATTENDING, kv_len=kv_len, out=attended)
        linear.cuda(attended["out"], w["o"], out=r["o"])
        rms_norm.cuda_add(r["embd"], r["o"], gain, eps=1e-5, out=(r["resid"], r["ffn_norm"]))
        linear.cuda_many(r["ffn_norm"], [w["gate"], w["up"]], [None] * 2, out=[r["gate"], r["up"]])
        glu.cuda(r["gate"], r["up"], out=r["act"])
        linear.cuda(r["act"], w["down"], out=r["down"])
        add.cuda(r["resid"], r["down"], out=r["end"])

    return step, {**r, **{name: attended[name] for name in ("out", *EVERYTHING)}}


def test_decode_step_as_a_graph(device):
    """A layer of decode, captured once and replayed for every token: each replay sees its own inputs."""
    ids = np.random.default_rng(0).integers(0, 50, 35, dtype=np.int32)
    weights, gain = layer_weights(), draw(64)

    def compute():
        inputs = [device.put(np.array([n], np.int32)) for n in (ids[0], 0, 1)]
        step, results = layer_step(device, weights, gain, *inputs)
        replay = device.capture(step)
        recorded = {}
        for n, token in enumerate(ids):
            for array, value in zip(inputs, (token, n, n + 1)):
                device.fill(array, value)
            replay()
            recorded |= {(n, name): device.get(array).copy() for name, array in results.items()}
        return recorded

    recorded = device.run(compute)
    for n in range(len(ids)):
        for name, want in layer_on_cpu(ids[: n + 1], weights, gain).items():
            got = recorded[n, name]
            got = got[: n // 16 + 1] if name.endswith("_tiles") else got
            got = got[..., : n + 1] if name in ("scores", "probs") else got
            assert nrmse(got, want) <= 5e-6, (n, name)
