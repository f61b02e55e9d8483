"""Gemma 3: windows with a RoPE base of their own in five of six layers, norms of Q and K."""

from architecture import HEADS, LINEAR, THIRD, WINDOW, Architecture, each, rope


def weight(model, name, values):
    """GGUF holds 1 + w, to which transformers adds the 1 itself."""
    return values - 1 if name.endswith("norm.weight") else values


def config(model):
    hp = model.hparam
    local = {"rope_type": "default", "rope_theta": hp("rope.freq_base_swa", 10_000.0)}
    return {
        "query_pre_attn_scalar": hp("attention.key_length"),
        "sliding_window": hp("attention.sliding_window"),
        "rope_parameters": {"full_attention": rope(model), "sliding_attention": local},
    }


NORMS = {"post_norms": True, "qk_norm": True, "tied": True, "layers": 7}
ENTRY = Architecture(
    shapes=each(HEADS, **NORMS, rope_base=1e6, metadata=WINDOW)
    | each({"linear": THIRD}, **NORMS, metadata=WINDOW | LINEAR),
    faults=("norm_plus_one@q_norm", "rope_theta@5=500000", "norm_plus_one@attn_post_norm"),
    model_type="gemma3_text",
    names={
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    config=config,
    weight=weight,
)
