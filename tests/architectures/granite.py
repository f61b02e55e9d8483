"""Granite: four multipliers."""

from architecture import HEADS, Architecture, each, half_split

MULTIPLIERS = {
    "embedding_scale": 12.0,
    "residual_scale": 0.22,
    "attention.scale": 0.0625,
    "logit_scale": 8.0,
}


def config(model):
    hp = model.hparam
    return {
        "embedding_multiplier": hp("embedding_scale"),
        "residual_multiplier": hp("residual_scale"),
        "attention_multiplier": hp("attention.scale"),
        "logits_scaling": hp("logit_scale"),
    }


ENTRY = Architecture(
    shapes=each(HEADS, metadata=MULTIPLIERS),
    faults=("attn_scale=0.2236", "rope_pairing", "gqa_map"),
    model_type="granite",
    config=config,
    weight=half_split,
)
