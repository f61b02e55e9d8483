"""Keys of the file that an engine reads wrongly, or takes from its defaults."""

from faults.llama_cpp import add

ROPE = "q_rope k_rope"
MANY = "llama qwen2 qwen3 phi3 olmo2 granite smollm3 gemma2"

for base in (5e5, 1e3, 33333.0):
    add(f"rope_base_{base:.0f}", "rope_theta", ROPE, MANY, metadata={"rope.freq_base": base})
add("rope_base_not_read", "rope_theta rope_per_layer", ROPE, "gemma3", metadata={"rope.freq_base": 1e4})
add("local_rope_base", "rope_theta rope_per_layer", ROPE, "gemma3", metadata={"rope.freq_base_swa": 1e6})

NORMS = "attn_norm ffn_norm q_norm k_norm attn_post_norm ffn_post_norm final_norm"
for eps in (1e-3, 0.02):
    add(
        f"norm_eps_{eps:g}",
        "norm_eps",
        NORMS,
        f"{MANY} gemma3 qwen2moe",
        metadata={"attention.layer_norm_rms_epsilon": eps},
    )
add("layer_norm_eps", "norm_eps", NORMS, "gpt2", metadata={"attention.layer_norm_epsilon": 0.02})

LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
}
add("rope_scaling_added", "rope_scaling", ROPE, "llama qwen2 qwen3 granite", metadata=LINEAR)
add("yarn_added", "rope_scaling", ROPE, "llama qwen2 qwen3", metadata=YARN)
add(
    "rope_scaling_ignored",
    "rope_scaling",
    ROPE,
    "llama/linear llama/yarn qwen2/yarn qwen3/yarn smollm3/yarn gemma3/linear",
    metadata={"rope.scaling.type": "none", "rope.scaling.factor": 1.0},
)
add(
    "rope_scaling_factor",
    "rope_scaling",
    ROPE,
    "llama/linear gemma3/linear",
    metadata={"rope.scaling.factor": 8.0},
)
add("yarn_taken_for_linear", "rope_scaling", ROPE, "llama/yarn qwen2/yarn", metadata=LINEAR)
add("rope_factors_ignored", "rope_scaling", ROPE, "llama/llama3", without=("rope_freqs.weight",))
add(
    "yarn_magnitude",
    "yarn_mscale",
    ROPE,
    "llama/yarn qwen3/yarn",
    metadata={"rope.scaling.attn_factor": 1.5},
)
add(
    "long_factors",
    "rope_longrope",
    ROPE,
    "phi3/short",
    metadata={"rope.scaling.original_context_length": 16},
)
add("rope_dimensions", "rope_partial", ROPE, "phi3", metadata={"rope.dimension_count": 12})

add("attention_scale", "attn_scale", "attn", "granite", metadata={"attention.scale": 0.3})
add("attention_scale_one", "attn_scale", "attn", "granite", metadata={"attention.scale": 1.0})
add("embedding_scale", "embed_scale", "embd", "granite", metadata={"embedding_scale": 1.0})
add("embedding_scale_other", "embed_scale", "embd", "granite", metadata={"embedding_scale": 8.0})
add("residual_scale", "resid_mult", "resid_mid resid_out", "granite", metadata={"residual_scale": 1.0})
add("residual_scale_other", "resid_mult", "resid_mid resid_out", "granite", metadata={"residual_scale": 0.5})
add("logit_scale", "logit_scale", "logits", "granite", metadata={"logit_scale": 1.0})
add("logit_scale_other", "logit_scale", "logits", "granite", metadata={"logit_scale": 16.0})
add("attention_cap", "attn_softcap", "attn", "gemma2", metadata={"attn_logit_softcapping": 2.0})
add("attention_cap_50", "attn_softcap", "attn", "gemma2", metadata={"attn_logit_softcapping": 50.0})
add("logit_cap", "logit_softcap", "logits", "gemma2", metadata={"final_logit_softcapping": 30.0})
add("logit_cap_other", "logit_softcap", "logits", "gemma2", metadata={"final_logit_softcapping": 1.5})

WINDOWS = "gemma2 gemma3 olmo2/olmo3 gpt-oss"
add("window_one_wider", "swa_width", "attn", WINDOWS, metadata={"attention.sliding_window": 7})
add("window_one_narrower", "swa_width", "attn", WINDOWS, metadata={"attention.sliding_window": 5})
add("window_ignored", "swa_layers swa_width", "attn", WINDOWS, metadata={"attention.sliding_window": 400})

for name, ids, on, key, value in (
    ("scale", "attn_scale", "granite", "attention.scale", 0.3),
    ("scale_one", "attn_scale", "granite", "attention.scale", 1.0),
    ("cap", "attn_softcap", "gemma2", "attn_logit_softcapping", 2.0),
    ("window_ignored", "swa_layers swa_width", WINDOWS, "attention.sliding_window", 400),
    ("window_of_3", "swa_width", WINDOWS, "attention.sliding_window", 3),
):
    add(f"flash_{name}", ids, "attn", on, metadata={key: value}, flash=True)
