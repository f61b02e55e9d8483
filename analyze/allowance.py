"""How much of an op's error rounding explains, row by row, given what it read and the weights it used.

An engine rounds what an op reads (16-bit operands, 8-bit activations, a KV cache in float16), adds up in
float32 and rounds what comes out; a file may round once more.  For products the effect of all this has a
closed form: independent errors d_i of the terms of y_j = sum_i x_i w_ji add up to

    |dy|^2 = sum_i d_i^2 sum_j w_ji^2

so that one product with the squared norms of the weight's columns tells it for each row, massive activations
and all.  Scores are such products of q and k; an error E of theirs changes probabilities by a factor exp(E).
Element-wise ops and norms are run once more on inputs that are off by what their storage lost.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np
from gguf.constants import GGMLQuantizationType as Kind

from ..tracer.format import numpy_dtype
from ..tracer.ggml import activation
from ..tracer.gguf import Model
from ..tracer.graph import Op
from ..tracer.names import Key
from ..tracer.trace import Trace
from . import roundoff
from .roundoff import F32, UNIT, Precision

SLACK = 3.0  # errors add up in unlucky ways, and kernels round more than once
UNLUCKY = 2.0  # where one run with rounding stands for all
PEAK = 4.0  # the largest error of many over their RMS
TIE = 4.0  # units of rounding by which two scores of one router may change places
LARGEST = 10.0  # errors of scores above this need no telling apart
EXACT = ("embedding", "rms_norm", "rope", "add", "glu", "top_k")  # round relative to their output
BLOCKS = {"Q8_0": 32, "Q8_1": 32, "Q8_K": 256}  # elements that share a scale in 8-bit activations

Arrays = Mapping[Key, np.ndarray]


class Allowance:
    """What the precision that a trace declares explains of each op's error."""

    def __init__(self, trace: Trace, model: Model):
        header = trace.header
        self._trace, self._model, self.precision = trace, model, Precision.of(header)
        self._computed = UNIT.get(header.compute_dtype, F32)
        self._ggml = header.engine.startswith("llama.cpp")

    # ---- what a file lost of a tensor

    def lost(self, key: Key, values: np.ndarray) -> np.ndarray | None:
        """How far each element is off in the file, in RMS; None where it holds what the engine had.

        Rounding to nearest is off by half the spacing of numbers at most, and by 1/sqrt(3) of that in RMS.
        """
        spec = self._trace.tensors.get(key)
        if spec is None:
            return None
        unit, printed = UNIT.get(spec.dtype, 0.0), spec.conventions.get("rounding", 0.0)
        if not self.is_lossy(key):
            return np.full_like(values, printed) if printed else None
        spacing = float(ml_dtypes.finfo(numpy_dtype(spec.dtype)).smallest_subnormal)
        exponents = np.frexp(np.where(np.isfinite(values), values, 0.0))[1]
        half = np.maximum(np.ldexp(unit, exponents - 1), spacing / 2)  # of the distance of two numbers
        count = values.size // max(len(values), 1) if values.ndim > 1 else 1
        return half * roundoff.usual(count) + printed

    def is_lossy(self, key: Key) -> bool:
        """Whether a tensor is stored in a type that holds less than the engine's own."""
        spec = self._trace.tensors.get(key)
        return spec is not None and UNIT.get(spec.dtype, 0.0) > self._computed

    def _lost2(self, key: Key, values: np.ndarray) -> np.ndarray | float:
        lost = self.lost(key, values)
        return 0.0 if lost is None else lost * lost

    # ---- one op, from recorded inputs

    def of(
        self, op: Op, inputs: Sequence[np.ndarray], weights: Sequence[np.ndarray], results: Arrays
    ) -> dict[Key, np.ndarray]:
        """The error to allow in each row of each result, in L2 norm: [token], or [head, query]."""
        if op.kind == "linear":
            found = {op.out: self._linear(op, inputs[0], results[op.out])}
        elif op.kind == "attention":
            found = self._attention(op, inputs, results)
        else:
            found = {key: self._other(op, inputs, weights, key, array) for key, array in results.items()}
        return {key: SLACK * self.stored(key, results[key], noise) for key, noise in found.items()}

    def stored(self, key: Key, values: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """`noise` of rows with what the file lost of them on top."""
        lost = self.lost(key, values)
        return noise if lost is None else np.hypot(noise, length(key, lost))

    def _linear(self, op: Op, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        rows = x.reshape(len(x), -1)
        unit = self._unit(op)
        squares = rows * rows
        errors = squares * ((2 * unit**2 if unit > F32 else 0.0) + rows.shape[1] * min(unit, F32) ** 2)
        if block := self._block(op):
            blocks = np.abs(rows.reshape(len(rows), -1, block))
            errors += np.repeat((blocks.max(-1) / 127) ** 2 / 12, block, axis=-1)
        errors += self._lost2(op.inputs[0], rows)
        made = errors @ self._columns
        return np.sqrt(made + (self.precision.other * length(op.out, y)) ** 2)

    def prepare(self, op: Op, weights: Sequence[np.ndarray]) -> None:
        """Once for each product, before `of` is asked for blocks of its rows."""
        self._columns = np.einsum("oi,oi->i", weights[0], weights[0])

    def _block(self, op: Op) -> int:
        """How many activations share a scale where a product rounds them to 8 bits; 0: it does not."""
        if self.precision.product != roundoff.QUANTISED:
            return 0
        kind = self._activation(op) if self._ggml else "Q8_0"
        return BLOCKS.get(kind, 0)

    def _unit(self, op: Op) -> float:
        """The type that a product rounds its operands to."""
        if self.precision.product != roundoff.QUANTISED:
            return self.precision.product
        kind = self._activation(op) if self._ggml else ""
        return {"F16": UNIT["float16"], "BF16": UNIT["bfloat16"]}.get(kind, self.precision.other)

    def _activation(self, op: Op) -> str:
        return activation(Kind[self._model.tensor_type(op.weights[0])])

    def _other(
        self, op: Op, inputs: Sequence[np.ndarray], weights: Sequence[np.ndarray], key: Key, y: np.ndarray
    ) -> np.ndarray:
        noise = self.own(op, inputs) * length(key, y)
        if op.kind == "top_k":
            return np.where(self._near_ties(op, inputs[0]).any(1), np.inf, noise)
        with np.errstate(all="ignore"):
            for index, (name, x) in enumerate(zip(op.inputs, inputs)):
                if (moved := self._off(op, name, x)) is x:
                    continue
                again = op.compute()(*inputs[:index], moved, *inputs[index + 1 :], *weights, **op.params)
                apart = length(key, (again[key.name] if isinstance(again, dict) else again) - y)
                noise = np.hypot(noise, apart if op.kind in EXACT else np.hypot(apart, np.median(apart)))
        return noise

    def _off(self, op: Op, key: Key, x: np.ndarray) -> np.ndarray:
        """An input off by what its storage lost, and by its own rounding where the op may enlarge that."""
        if x.dtype.kind != "f":
            return x
        lost = self.lost(key, x)
        moved = x if lost is None else x + lost * signs(x.shape)
        return moved if op.kind in EXACT else self._as_operand(op, moved, [x])

    def _near_ties(self, op: Op, x: np.ndarray) -> np.ndarray:
        """Which of the first k entries, largest first, might change places with the next one [token, k]."""
        largest = -np.sort(-x, axis=-1)[:, : op.params["k"] + 1]
        lost = self.lost(op.inputs[0], x)
        off = TIE * self.precision.other * np.abs(largest[:, :-1])
        off += 0 if lost is None else TIE * lost.max()
        return largest[:, :-1] - largest[:, 1:] <= off

    def own(self, op: Op, inputs: Sequence[np.ndarray]) -> np.ndarray | float:
        """The relative rounding of an op that is no product: a figure, or one for each row."""
        unit = self.precision.other
        if op.kind == "rms_norm":
            return roundoff.norm(unit, inputs[0].shape[-1])
        if op.kind == "rope":
            return roundoff.rotation(unit, inputs[1].astype(np.float64))
        if self._ggml and {"gelu", "gelu_tanh"} & {op.kind, op.params.get("activation")}:
            unit = max(unit, UNIT["float16"])  # ggml looks GELU up in a table of float16
        return roundoff.elementwise(unit)

    # ---- attention

    def _attention(self, op: Op, inputs: Sequence[np.ndarray], results: Arrays) -> dict[Key, np.ndarray]:
        q, k, v = (np.where(np.isfinite(array), array, 0.0) for array in inputs[:3])  # one NaN is no excuse
        layer, rows, keys = op.out.layer, q.shape[0], len(k)
        heads = np.arange(q.shape[1]) // (q.shape[1] // k.shape[1])
        positions = np.arange(keys - rows, keys)
        score = self._score_error(op, q, k, positions, heads, results.get(Key(layer, "scores")))
        seen = positions + 1
        relative = np.expm1(np.minimum(PEAK * score, LARGEST))
        relative = relative + roundoff.softmax(self.precision.attention, keys)
        largest = np.maximum.accumulate(np.sqrt(np.einsum("khd,khd->kh", v, v)))[positions][:, heads].T
        operands = 2 * self.precision.attention + self._relative_loss(op.inputs[2])
        mixed = (np.expm1(np.minimum(2 * score, LARGEST)) + operands) * largest
        unit = self.precision.other
        found = {op.out: np.hypot(np.sqrt((mixed**2).sum(0)), unit * length(op.out, results[op.out]))}
        for key, array in results.items():
            if key.name == "scores":
                found[key] = score * np.sqrt(seen)
            elif key.name in ("m", "m_tiles"):
                found[key] = PEAK * score * (1 if key.name == "m" else math.sqrt(len(array)))
            elif key != op.out:
                found[key] = relative * length(key, array)
        return found

    def _score_error(
        self,
        op: Op,
        q: np.ndarray,
        k: np.ndarray,
        positions: np.ndarray,
        heads: np.ndarray,
        scores: np.ndarray | None,
    ) -> np.ndarray:
        """The RMS error of the scores of each query [head, query]."""
        unit, dim, scale = self.precision.attention, q.shape[2], abs(float(op.params.get("scale", 1.0)))
        mean = np.cumsum(k * k, 0)[positions] / (positions + 1)[:, None, None]
        products = np.einsum("qhd,qhd->hq", q * q, mean[:, heads]) * scale**2
        losses = self._relative_loss(op.inputs[0]) ** 2 + self._relative_loss(op.inputs[1]) ** 2
        error = products * (losses + 2 * unit**2 + dim * min(unit, F32) ** 2)
        if scores is None:
            sizes = np.einsum("qhd,qhd->hq", q, q) * mean.sum(-1)[:, heads].T * scale**2
        else:
            finite = np.where(np.isfinite(scores), scores, 0.0)
            sizes = np.einsum("hqk,hqk->hq", finite, finite) / (positions + 1)
        return np.sqrt(error + 2 * self.precision.other**2 * sizes)

    def _relative_loss(self, key: Key) -> float:
        return UNIT[self._trace.tensors[key].dtype] / 3**0.5 if self.is_lossy(key) else 0.0

    # ---- several ops replayed as one

    def rounded(self, op: Op, inputs: Sequence[np.ndarray], recorded: Sequence[bool]) -> list[np.ndarray]:
        """The inputs as the op's engine would have rounded them, to see what that does to its outputs."""
        with np.errstate(all="ignore"):
            return [*self._rounded(op, inputs, recorded)]

    def _rounded(
        self, op: Op, inputs: Sequence[np.ndarray], recorded: Sequence[bool]
    ) -> Iterator[np.ndarray]:
        for index, (key, x) in enumerate(zip(op.inputs, inputs)):
            if x.dtype.kind != "f":
                yield x
                continue
            yield self._as_operand(op, self.moved(key, x) if recorded[index] else x, inputs)

    def moved(self, key: Key, x: np.ndarray) -> np.ndarray:
        """A recorded input off by what its file may have lost of it."""
        lost = self.lost(key, x)
        return x if lost is None else x + UNLUCKY * lost * signs(x.shape)

    def _as_operand(self, op: Op, x: np.ndarray, inputs: Sequence[np.ndarray]) -> np.ndarray:
        if self._is_product(op):
            terms = self._model.shape(op.weights[0])[-1]
            if (block := self._block(op)) and terms % block == 0:
                blocks = x.reshape(len(x), -1, block)
                scale = np.maximum(np.abs(blocks).max(-1, keepdims=True), 1e-300) / 127
                return (np.round(blocks / scale) * scale).reshape(x.shape)
            unit = self._unit(op)
            amount = math.hypot(2 * unit if unit > F32 else unit, math.sqrt(terms) * min(unit, F32))
        elif op.kind == "attention":
            unit = max(self.precision.attention, self.precision.other)
            amount = math.hypot(2 * unit, math.sqrt(x.shape[-1]) * min(unit, F32))
        else:
            own = np.asarray(self.own(op, inputs))
            return x + own.reshape(-1, *(1,) * (x.ndim - 1)) * x * signs(x.shape)
        return x + amount * x * signs(x.shape)

    def _is_product(self, op: Op) -> bool:
        """Whether an op multiplies by a matrix."""
        return op.kind != "embedding" and any(len(self._model.shape(name)) > 1 for name in op.weights)

    def swapped(self, op: Op, exact: np.ndarray, rounded: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The choice [token, k] of an engine for which near ties went the other way: what that would do.

        `exact` and `rounded` are the scores chosen from.
        """
        k = op.params["k"]
        order = np.argsort(-exact, axis=-1, kind="stable")[:, : k + 1]
        gaps = -np.diff(np.take_along_axis(exact, order, -1), axis=-1)
        close = gaps <= 2 * PEAK * np.abs(rounded - exact).max(-1, keepdims=True)
        ids = ids.copy()
        for slot in range(close.shape[1] - 1, -1, -1):
            rows = np.flatnonzero(close[:, slot])
            ids[rows, slot] = order[rows, slot + 1]
            if slot + 1 < k:
                ids[rows, slot + 1] = order[rows, slot]
        return ids


def length(key: Key, array: np.ndarray) -> np.ndarray:
    """The L2 norm of each row: [token], or [head, query] over keys and tiles; masked entries count as 0."""
    if not np.isfinite(array).all():
        array = np.where(np.isfinite(array), array, 0.0)
    if key.name in ("m", "l"):
        return np.abs(array)
    if key.name in ("m_tiles", "l_tiles"):
        return np.sqrt(np.einsum("thq,thq->hq", array, array))
    if key.name in ("scores", "probs"):
        return np.sqrt(np.einsum("hqk,hqk->hq", array, array))
    rows = array.reshape(len(array), -1)
    return np.sqrt(np.einsum("ti,ti->t", rows, rows))


def signs(shape: tuple[int, ...]) -> np.ndarray:
    """+1 and -1 at random, the same each time: NumPy promises that raw bits stay as they are."""
    size = math.prod(shape)
    bits = np.frombuffer(np.random.PCG64(size).random_raw(-(-size // 64)).tobytes(), np.uint8)
    return 1.0 - 2.0 * np.unpackbits(bits)[:size].reshape(shape)
