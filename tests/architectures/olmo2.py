"""OLMo 2: norms behind the blocks only.  With a window it is OLMo 3, another model to transformers."""

import numpy as np
from architecture import EVEN, WINDOW, YARN, Architecture, each, rope
from ggufs import Weights

OTHER_NORMS = (".attn_norm.weight", ".ffn_norm.weight")


def norms_behind(weights: Weights) -> Weights:
    """OLMo 2's norms: none before the blocks, and those of Q and K over all heads."""
    rng = np.random.default_rng(1)
    kept = {name: values for name, values in weights.items() if not name.endswith(OTHER_NORMS)}
    for name in [name for name in weights if name.endswith(("attn_q.weight", "attn_k.weight"))]:
        size = len(weights[name])
        kept[name.replace(".weight", "_norm.weight")] = rng.normal(1, 0.2, size).astype(np.float32)
    return kept


def config(model):
    if not (window := model.hparam("attention.sliding_window", 0)):
        return {}
    local = {"rope_type": "default", "rope_theta": model.hparam("rope.freq_base")}
    both = {"full_attention": rope(model), "sliding_attention": local}
    return {"model_type": "olmo3", "sliding_window": window, "rope_parameters": both}


ENTRY = Architecture(
    shapes=each(EVEN, tied=False, post_norms=True, change=norms_behind)
    | each({"olmo3": EVEN["third"]}, post_norms=True, change=norms_behind, layers=5, metadata=WINDOW | YARN),
    faults=("norm_eps@q_norm=1e-3", "norm_plus_one@ffn_post_norm", "kv_slot"),
    model_type="olmo2",
    names={"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"},
    config=config,
)
