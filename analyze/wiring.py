"""What each tensor of the vocabulary is computed from, for traces that don't say, and by what kind of op."""

from collections.abc import Container
from typing import NamedTuple

from ..tracer.format import TensorSpec
from ..tracer.names import Key


class Source(NamedTuple):
    """The op's kind, and the names of its inputs: alternatives are joined by `|`, the first recorded counts.

    `@-1` is the residual stream that enters the layer: `resid_out` of the layer before, or `embd`.
    """

    kind: str
    inputs: tuple[str, ...]


WIRING = {
    "embd": Source("embedding", ()),
    "attn_norm": Source("norm", ("@-1",)),
    "q": Source("linear", ("attn_norm",)),
    "k": Source("linear", ("attn_norm",)),
    "v": Source("linear", ("attn_norm",)),
    "q_norm": Source("norm", ("q",)),
    "k_norm": Source("norm", ("k",)),
    "q_rope": Source("rope", ("q_norm|q",)),
    "k_rope": Source("rope", ("k_norm|k",)),
    "scores": Source("scores", ("q_rope", "k_rope")),
    "m_tiles": Source("max", ("scores",)),
    "l_tiles": Source("softmax", ("scores",)),
    "m": Source("max", ("scores",)),
    "l": Source("softmax", ("scores",)),
    "probs": Source("softmax", ("scores",)),
    "attn": Source("attend", ("probs", "v")),
    "attn_out": Source("linear", ("attn",)),
    "attn_post_norm": Source("norm", ("attn_out",)),
    "resid_mid": Source("add", ("@-1", "attn_post_norm|attn_out")),
    "ffn_norm": Source("norm", ("resid_mid",)),
    "router": Source("linear", ("ffn_norm",)),
    "expert_ids": Source("choice", ("router",)),
    "expert_weights": Source("glu", ("router",)),
    "gate": Source("linear", ("ffn_norm",)),
    "up": Source("linear", ("ffn_norm",)),
    "act": Source("glu", ("gate", "up")),
    "ffn_out": Source("linear", ("act",)),
    "ffn_post_norm": Source("norm", ("ffn_out",)),
    "resid_out": Source("add", ("resid_mid", "ffn_post_norm|ffn_out")),
    "final_norm": Source("norm", ("@-1",)),
    "logits": Source("linear", ("final_norm",)),
}
KINDS = {"rms_norm": "norm", "layer_norm": "norm"}  # an op's name in a trace where it is not the kind
HISTORY = ("k", "k_norm", "k_rope", "v")  # attention reads every row so far, of earlier steps too


def base_name(key: Key) -> Key:
    """The tensor that a statistic (`q.l2`) is made of; other keys as they are."""
    return Key(key.layer, key.name.split(".")[0])


def kind_of(key: Key) -> str:
    """The kind of op that computes a tensor of the vocabulary; `other` for names that are not in it."""
    return WIRING[key.name].kind if key.name in WIRING else "other"


class Wiring:
    """Inputs and kinds of the tensors of a comparison: as the reference declares them, else as ours does.

    `layers` is the number that the model has, where it is known.
    """

    def __init__(self, ours: dict[Key, TensorSpec], reference: dict[Key, TensorSpec], layers: int = 0):
        self._specs = {base_name(key): spec for key, spec in (ours | reference).items()}
        recorded = (key.layer for key in self._specs if key.layer is not None)
        self.last_layer = max((*recorded, layers - 1))
        self._inputs: dict[Key, tuple[Key, ...]] = {}

    def kind(self, key: Key) -> str:
        """One of the kinds in WIRING, or `other`."""
        spec = self._specs.get(key)
        if key.name in WIRING or spec is None or spec.op not in _KNOWN:
            return kind_of(key)
        return KINDS.get(spec.op, spec.op)

    def inputs(self, key: Key) -> tuple[Key, ...]:
        """What the tensor is computed from: of an attention op just what this output depends on."""
        if key not in self._inputs:
            self._inputs[key] = self._inputs_of(key)
        return self._inputs[key]

    def _inputs_of(self, key: Key) -> tuple[Key, ...]:
        declared: tuple[Key, ...] = self._specs[key].inputs if key in self._specs else ()
        source = WIRING.get(key.name)
        if source is None:
            return declared
        named = tuple(self._find(key.layer, name) for name in source.inputs)
        if source.kind not in _ATTENTION:
            return declared or named
        if len(declared) != 3:  # q, k and v: the op as a whole
            return named
        q, k, v = declared
        return {"scores": (q, k), "attend": (named[0], v)}.get(source.kind, named)

    def nearest(self, key: Key, recorded: Container[Key]) -> tuple[list[Key], list[Key]]:
        """The recorded tensors that lead to `key`, and those in between that were not recorded."""
        found: list[Key] = []
        missing: list[Key] = []
        waiting = list(self.inputs(key))
        while waiting and len(missing) < LONGEST_SEGMENT:
            name = waiting.pop(0)
            known = found if name in recorded else missing
            if name not in known:
                known.append(name)
                waiting += () if known is found else self.inputs(name)
        return found, missing

    def _find(self, layer: int | None, name: str) -> Key:
        if name == "@-1":
            before = self.last_layer if layer is None else layer - 1
            return Key(before, "resid_out") if before >= 0 else Key(None, "embd")
        options = [Key(layer, option) for option in name.split("|")]
        return next((key for key in options if key in self._specs), options[-1])


LONGEST_SEGMENT = 100  # tensors without a recorded one among them, after which the search is given up
_ATTENTION = ("scores", "max", "softmax", "attend")  # parts of one op
_KNOWN = {"linear", "rope", "add", "glu", "embedding", *KINDS}
