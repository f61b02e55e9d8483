"""Gemma 2: caps, windows in every other layer, norms on both sides of a block."""

from architecture import HEADS, WINDOW, Architecture, each


def weight(model, name, values):
    """GGUF holds 1 + w, to which transformers adds the 1 itself."""
    return values - 1 if name.endswith("norm.weight") else values


def config(model):
    hp = model.hparam
    return {
        "query_pre_attn_scalar": hp("attention.key_length"),
        "sliding_window": hp("attention.sliding_window"),
        "attn_logit_softcapping": hp("attn_logit_softcapping"),
        "final_logit_softcapping": hp("final_logit_softcapping"),
    }


METADATA = WINDOW | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
ENTRY = Architecture(
    shapes=each(HEADS, post_norms=True, tied=True, layers=4, metadata=METADATA),
    faults=("norm_plus_one", "gqa_map", "norm_plus_one@ffn_post_norm"),
    model_type="gemma2",
    names={
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    config=config,
    weight=weight,
)
