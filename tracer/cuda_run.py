"""Interpret a graph on the GPU: kernels fused where they allow it, decode captured as a CUDA graph."""

from collections.abc import Callable, Collection
from math import prod
from typing import Any

import numpy as np

from ..kernels import attention, linear, rope
from .cuda_weights import GpuWeights
from .device import CudaDevice
from .errors import UserError
from .format import Step, numpy_dtype
from .graph import POSITIONS, TOKENS, Graph, Op
from .names import NAMES, Key
from .packed import Places, lay_out
from .plan import shapes

Array = Any
Allocate = Callable[[Key], Array | None]

OUTBOXES = 4  # decode steps that can be on their way to the host while the next one runs
FLOAT32 = frozenset(attention.EXTRAS)  # softmax state is float32 at every compute dtype


class CudaRunner:
    """Runs a graph, keeping the KV cache [max_tokens, kv_head, dim] of each layer on the GPU.

    A graph with a fault wrapped around an op runs op by op in decode too: wraps see arrays of exact length,
    and give new ones, as on the CPU.
    """

    def __init__(
        self,
        graph: Graph,
        weights: GpuWeights,
        device: CudaDevice,
        *,
        dtype: str,
        wanted: Collection[Key],
        max_tokens: int,
    ):
        self.graph, self.weights, self.device = graph, weights, device
        self.dtype, self.wanted, self.max_tokens = numpy_dtype(dtype), frozenset(wanted), max_tokens
        self._groups = group_ops(graph.ops)
        self._captured = not any(op.wraps for op in graph.ops)
        self._last_use = {key: i for i, group in enumerate(self._groups) for op in group for key in op.inputs}
        self._inputs = device.empty((3,), np.int32)  # token id, position, kv_len of a decode step
        self._kv_len = device.empty((1,), np.int32)
        self._caches: dict[Key, Array] = {}
        self._workspaces: dict[Key, Array] = {}
        self._decode: _Decode | None = None

    def step(self, step: Step, ids: np.ndarray, sink: Any) -> np.ndarray:
        """Feed `ids` [token]; returns the last token's logits [1, vocab]."""
        body = (
            self._decode_step
            if step.n_tokens == 1 and step.phase == "decode" and self._captured
            else self._eager
        )
        return self.device.run(lambda: body(step, ids, sink))

    # ---- the prompt, op by op

    def _eager(self, step: Step, ids: np.ndarray, sink: Any) -> np.ndarray:
        self.device.write(self._kv_len, np.array([step.kv_len], np.int32))
        live = {
            TOKENS: self.device.upload(ids.astype(np.int32)),
            POSITIONS: self.device.upload(np.arange(step.start, step.kv_len, dtype=np.int32)),
        }
        sizes = shapes(self.graph, step.n_tokens, step.kv_len)
        largest = 0
        for index, group in enumerate(self._groups):
            made_keys = {key for op in group for key in op.outputs if key == op.out or key in self.wanted}
            size = max(prod(sizes[key]) for key in made_keys)
            if size > largest:  # it fits into nothing that was freed so far
                largest = size
                self.device.trim()
            made = self._compute(group, live, step.kv_len, self._kv_len, lambda key: None)
            for key, array in made.items():
                if key in self.wanted:
                    sink(key, self.device.fetch(array))
                del array
            live |= {op.out: made[op.out] for op in group}
            del made  # nothing but `live` keeps memory from here on
            for key in {key for op in group for key in op.inputs}:
                if self._last_use[key] == index:
                    live.pop(key, None)
        return self._to_host(live[self.graph.ops[-1].out][-1:])

    def _to_host(self, logits: Array) -> np.ndarray:
        fetched = self.device.fetch(logits)
        values = np.asarray(fetched).astype(np.float32)
        fetched.release()
        return values

    # ---- decode: one graph launch a step

    def _decode_step(self, step: Step, ids: np.ndarray, sink: Any) -> np.ndarray:
        if self._decode is None:
            self._decode = _Decode(self)
        self.device.write(self._inputs, np.array([ids[0], step.start, step.kv_len], np.int32))
        block = self._decode.run()
        if block is not None:
            sink.packed(block, self._decode.places)
        return self._to_host(self._decode.logits)

    # ---- groups of ops

    def _compute(
        self, group: tuple[Op, ...], live: dict[Key, Array], keys: int | None, kv_len: Array, out: Allocate
    ) -> dict[Key, Array]:
        """Run a group; `keys` is the length of the cache in use, None where only the GPU knows (`kv_len`)."""
        if group[-1].kind == "attention" and not group[-1].wraps:
            return self._attend(group, live, keys, kv_len, out)
        if len(group) > 1:
            return self._multiply(group, live, out)
        return self._single(group[0], live, keys, out)

    def _multiply(self, group: tuple[Op, ...], live: dict[Key, Array], out: Allocate) -> dict[Key, Array]:
        x = live[group[0].inputs[0]]
        weights = [self.weights.weight(op.weights[0]) for op in group]
        biases = [self.weights.weight(op.weights[1]) if len(op.weights) > 1 else None for op in group]
        places = [place for place in (out(op.out) for op in group) if place is not None]
        flat = [place.reshape(x.shape[0], -1) for place in places] or None
        results = linear.cuda_many(x, weights, biases, out=flat)
        return {op.out: _in_heads(y, op.params.get("heads")) for op, y in zip(group, results, strict=True)}

    def _attend(
        self, group: tuple[Op, ...], live: dict[Key, Array], keys: int | None, kv_len: Array, out: Allocate
    ) -> dict[Key, Array]:
        """Attention, and before it the rotations of q and k where they are in the group."""
        *rotations, attend = group
        made: dict[Key, Array] = {}
        if rotations:
            made = self._rotate(rotations, live, attend.inputs[2], kv_len, out)
        q, k, v = ((live | made)[key] for key in attend.inputs)
        cache = self._cache(attend.inputs[1], k), self._cache(attend.inputs[2], v)
        if not rotations:
            rope.cuda_append(k, v, cache=cache, kv_len=kv_len)
        sinks = [self.weights.weight(name) for name in attend.weights]
        want = {key.name for key in attend.outputs if key in self.wanted and key != attend.out}
        params = {**attend.params, "want": want}
        if keys is None:
            arrays = {name: out(Key(attend.out.layer, name)) for name in want}
            arrays |= {"out": out(attend.out), "workspace": self._workspace(attend, q, cache[0])}
            result = attention.cuda(q, *cache, *sinks, **params, kv_len=kv_len, out=arrays)
        else:
            result = attention.cuda(q, cache[0][:keys], cache[1][:keys], *sinks, **params)
        return made | _named(attend, result)

    def _rotate(
        self, rotations: list[Op], live: dict[Key, Array], values: Key, kv_len: Array, out: Allocate
    ) -> dict[Key, Array]:
        """q and k rotated, k and `values` appended to the cache."""
        rotate_q, rotate_k = rotations
        q, k, v = live[rotate_q.inputs[0]], live[rotate_k.inputs[0]], live[values]
        q_place, k_place = out(rotate_q.out), out(rotate_k.out)
        q_rope, k_rope = rope.cuda_cached(
            q,
            k,
            v,
            live[POSITIONS],
            *(self.weights.weight(name) for name in rotate_q.weights),
            **rotate_q.params,
            cache=(self._cache(rotate_k.out, k), self._cache(values, v)),
            kv_len=kv_len,
            out=None if q_place is None else (q_place, k_place),
        )
        return {rotate_q.out: q_rope, rotate_k.out: k_rope}

    def _single(self, op: Op, live: dict[Key, Array], keys: int | None, out: Allocate) -> dict[Key, Array]:
        inputs = [
            self._remember(key, live[key], keys) if index in op.history else live[key]
            for index, key in enumerate(op.inputs)
        ]
        params = dict(op.params)
        if op.kind == "attention":
            params["want"] = {key.name for key in op.outputs if key in self.wanted and key != op.out}
        elif op.kind == "embedding":
            params["dtype"] = self.dtype
        place = out(op.out)
        if place is not None:
            params["out"] = place
        operands = [*inputs, *map(self.weights.weight, op.weights)]
        try:
            result = op.compute("cuda")(*operands, **params)
        except (AttributeError, TypeError, ValueError, IndexError) as error:
            if not op.wraps:
                raise
            said = f"the fault put into {op.out} is for the CPU's arrays: use --engine cpu"
            raise UserError(said) from error
        return _named(op, result) if isinstance(result, dict) else {op.out: result}

    def _workspace(self, attend: Op, q: Array, cache: Array) -> Array:
        """Scratch memory of one layer's decode attention, kept because a captured graph holds its address."""
        if attend.out not in self._workspaces:
            tile = attend.params.get("tile", attention.TILE)
            made = attention.cuda_outputs(q.shape, cache.shape, tile=tile, dtype=self.dtype)
            self._workspaces[attend.out] = made["workspace"]
        return self._workspaces[attend.out]

    def _cache(self, key: Key, like: Array) -> Array:
        if key not in self._caches:
            self._caches[key] = self.device.empty((self.max_tokens, *like.shape[1:]), like.dtype)
        return self._caches[key]

    def _remember(self, key: Key, array: Array, keys: int | None) -> Array:
        assert keys is not None, "a captured graph reads the cache through kv_len"
        cache = self._cache(key, array)
        self.device.copy(cache[keys - array.shape[0] : keys], array)
        return cache[:keys]


class _Decode:
    """The buffers and the captured graph of decode steps.

    Each wanted tensor has a place in one block (laid out as its rows in the trace), filled with NaN once:
    what lies beyond kv_len in a padded row is never written.
    """

    def __init__(self, runner: CudaRunner):
        self.runner, device = runner, runner.device
        sizes = shapes(runner.graph, 1, runner.max_tokens)
        wanted = {key: sizes[key] for op in runner.graph.ops for key in op.outputs if key in runner.wanted}
        dtypes = {key: np.dtype(_own_dtype(key) or runner.dtype) for key in sizes}
        self.places: Places
        self.places, size = lay_out({key: (shape, dtypes[key]) for key, shape in wanted.items()})
        self._block = device.full(size, 0xFF)
        self._buffers = {
            key: part.view(place.dtype).reshape(place.shape)
            for key, place in self.places.items()
            for part in [self._block[place.span]]
        }
        for op in runner.graph.ops:
            if op.out not in self._buffers:
                self._buffers[op.out] = device.empty(sizes[op.out], dtypes[op.out])
        self.logits = self._buffers[runner.graph.ops[-1].out]
        copies = OUTBOXES if wanted else 0
        self._outboxes = [device.empty((size,), np.uint8) for _ in range(copies)]
        self._sent: list[Any] = [None] * copies
        self._turn = 0
        self._launch: Callable[[], None] | None = None
        self._warm = False

    def run(self) -> Any:
        """One step; its block on the way to the host (`packed.Pending`), None where nothing is recorded."""
        if self._launch is not None:
            self._launch()
        elif self._warm:
            self._launch = self.runner.device.capture(self._forward)
            self._launch()
        else:  # the first step compiles and loads every kernel, which a capture must not
            self._forward()
            self._warm = True
        return self._send() if self._outboxes else None

    def _send(self) -> Any:
        """Copy the block aside, so that the next step can run while this one travels."""
        device, turn = self.runner.device, self._turn
        if self._sent[turn] is not None:
            device.after(self._sent[turn])
        device.copy(self._outboxes[turn], self._block)
        self._sent[turn] = device.fetch(self._outboxes[turn])
        self._turn = (turn + 1) % OUTBOXES
        return self._sent[turn]

    def _forward(self) -> None:
        runner = self.runner
        inputs = runner._inputs
        live = {TOKENS: inputs[0:1], POSITIONS: inputs[1:2]}
        for group in runner._groups:
            live |= runner._compute(group, live, None, inputs[2:3], self._buffers.get)


def _own_dtype(key: Key) -> str:
    """The dtype of a tensor that has the same at every compute dtype."""
    return "float32" if key.name in FLOAT32 else NAMES[key.name].dtype if key.name in NAMES else ""


def group_ops(ops: list[Op]) -> list[tuple[Op, ...]]:
    """Ops that one launch (or one chain of launches) can do together, in order; others alone."""
    groups, index = [], 0
    while index < len(ops):
        count = _rotation(ops[index : index + 3]) or _products(ops[index : index + linear.MATRICES])
        groups.append(tuple(ops[index : index + count]))
        index += count
    return groups


def _products(ops: list[Op]) -> int:
    """How many of `ops`, from the first on, are products of one input."""
    first = ops[0]
    if first.kind != "linear" or first.wraps:
        return 1
    same = (op.kind == "linear" and not op.wraps and op.inputs == first.inputs for op in ops)
    return next((index for index, fits in enumerate(same) if not fits), len(ops))


def _rotation(ops: list[Op]) -> int:
    """3 where `ops` rotate a query and a key alike and attend with them, else 0."""
    if [op.kind for op in ops] != ["rope", "rope", "attention"] or any(op.wraps for op in ops):
        return 0
    q, k, attend = ops
    alike = q.params == k.params and q.weights == k.weights
    return 3 if alike and attend.inputs[:2] == (q.out, k.out) else 0


def _in_heads(y: Array, heads: int | None) -> Array:
    return y if heads is None else y.reshape(y.shape[0], heads, -1)


def _named(op: Op, result: dict[str, Array]) -> dict[Key, Array]:
    return {op.out if name == "out" else Key(op.out.layer, name): array for name, array in result.items()}
