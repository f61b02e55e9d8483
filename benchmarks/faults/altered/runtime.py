"""llama.cpp's own options set otherwise than the model wants."""

from faults.llama_cpp import add

ROPE = "q_rope k_rope"
PLAIN, SCALED = "llama qwen2 qwen3", "llama/linear llama/yarn"
YARN_TYPE, LINEAR_TYPE, NO_TYPE, NOT_CAUSAL = 2, 1, 0, 1  # of llama.h

add("option_rope_base", "rope_theta", ROPE, f"{PLAIN} granite", options={"rope_freq_base": 5e5})
add("option_rope_scale", "rope_scaling", ROPE, f"{PLAIN} granite", options={"rope_freq_scale": 0.25})
add("option_rope_stretched", "rope_scaling", ROPE, "llama qwen3", options={"rope_freq_scale": 3.0})
add(
    "option_no_scaling",
    "rope_scaling",
    ROPE,
    "llama/linear llama/yarn",
    options={"rope_scaling_type": NO_TYPE},
)
add(
    "option_yarn",
    "rope_scaling",
    ROPE,
    "llama qwen2",
    options={"rope_scaling_type": YARN_TYPE, "rope_freq_scale": 0.25, "yarn_orig_ctx": 16},
)
add("option_yarn_magnitude", "yarn_mscale", ROPE, PLAIN, options={"yarn_attn_factor": 1.3})
add("not_causal", "causal_mask", "attn", PLAIN, options={"attention_type": NOT_CAUSAL})
