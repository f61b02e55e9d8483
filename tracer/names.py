"""The one vocabulary of tensor names and axes that every engine is translated into (DESIGN: names)."""

from dataclasses import dataclass
from typing import NamedTuple


class Key(NamedTuple):
    """Which tensor: its layer (None for the global ones) and its name."""

    layer: int | None
    name: str

    @property
    def path(self) -> str:
        """Its place in a trace file, as `/layers/03/q` or `/logits`."""
        return f"/{self.name}" if self.layer is None else f"/layers/{self.layer:02d}/{self.name}"

    def __str__(self) -> str:
        return self.name if self.layer is None else f"L{self.layer:02d} {self.name}"


@dataclass(frozen=True)
class Name:
    """One entry of the vocabulary: axes slowest first; `dtype` where it is not the run's."""

    name: str
    axes: tuple[str, ...]
    doc: str
    dtype: str = ""


NAMES = {
    entry.name: entry
    for entry in (
        Name("tok_embd", ("token", "dim"), "token embedding, where positions are added to it"),
        Name("pos_embd", ("token", "dim"), "learned embedding of the position"),
        Name("embd", ("token", "dim"), "token embedding as the first layer sees it"),
        Name("attn_norm", ("token", "dim"), "norm before attention"),
        Name("q", ("token", "head", "dim"), "query projection, bias added"),
        Name("k", ("token", "head", "dim"), "key projection, bias added"),
        Name("v", ("token", "head", "dim"), "value projection, bias added"),
        Name("q_norm", ("token", "head", "dim"), "query after QK-norm"),
        Name("k_norm", ("token", "head", "dim"), "key after QK-norm"),
        Name("q_rope", ("token", "head", "dim"), "query after rotary embedding"),
        Name("k_rope", ("token", "head", "dim"), "key after rotary embedding"),
        Name("scores", ("head", "query", "key"), "what softmax sees: scaled, capped, -inf where masked"),
        Name("m_tiles", ("tile", "head", "query"), "running softmax maximum after each tile of keys"),
        Name("l_tiles", ("tile", "head", "query"), "running softmax sum after each tile of keys"),
        Name("m", ("head", "query"), "softmax maximum of each query row"),
        Name("l", ("head", "query"), "softmax sum of exp(score - m) of each query row"),
        Name("probs", ("head", "query", "key"), "attention probabilities"),
        Name("attn", ("token", "head", "dim"), "probabilities times values"),
        Name("attn_out", ("token", "dim"), "attention output projection"),
        Name("attn_post_norm", ("token", "dim"), "norm after attention"),
        Name("resid_mid", ("token", "dim"), "residual stream after attention"),
        Name("ffn_norm", ("token", "dim"), "norm before the feed-forward block"),
        Name("router", ("token", "expert"), "mixture-of-experts router logits"),
        Name("expert_ids", ("token", "slot"), "experts chosen for each token, best first", "int32"),
        Name("expert_weights", ("token", "slot"), "weights of the chosen experts"),
        Name("expert_gate", ("token", "slot", "ffn"), "gate projection of each chosen expert"),
        Name("expert_up", ("token", "slot", "ffn"), "up projection of each chosen expert"),
        Name("expert_act", ("token", "slot", "ffn"), "activation(gate) * up of each chosen expert"),
        Name("expert_out", ("token", "slot", "dim"), "down projection of each chosen expert"),
        Name("moe_out", ("token", "dim"), "weighted sum of the chosen experts, where more is added to it"),
        Name("gate", ("token", "ffn"), "feed-forward gate projection"),
        Name("up", ("token", "ffn"), "feed-forward up projection"),
        Name("act", ("token", "ffn"), "activation(gate) * up"),
        Name("shared_out", ("token", "dim"), "down projection of the expert that all tokens share"),
        Name("ffn_out", ("token", "dim"), "feed-forward down projection"),
        Name("ffn_post_norm", ("token", "dim"), "norm after the feed-forward block"),
        Name("resid_out", ("token", "dim"), "residual stream after the layer"),
        Name("final_norm", ("token", "dim"), "norm after the last layer"),
        Name("raw_logits", ("token", "vocab"), "product of the output head, before its scale or cap"),
        Name("logits", ("token", "vocab"), "one score for each entry of the vocabulary"),
    )
}

ATTENTION_EXTRAS = ("scores", "m_tiles", "l_tiles", "m", "l", "probs")

_BEFORE_LAYERS, _AFTER_LAYERS = ("tok_embd", "pos_embd", "embd"), ("final_norm", "raw_logits", "logits")
GLOBAL = (*_BEFORE_LAYERS, *_AFTER_LAYERS)  # the names that belong to no layer
_ORDER = {name: index for index, name in enumerate(NAMES)}


def execution_order(key: Key) -> tuple[int, int, int, str]:
    """Sort key that puts the tensors of one step in the order in which a transformer computes them."""
    if key.layer is not None:
        return (1, key.layer, _ORDER.get(key.name, len(_ORDER)), key.name)
    group = 0 if key.name in _BEFORE_LAYERS else 2
    return (group, 0, _ORDER.get(key.name, len(_ORDER)), key.name)
