"""Qwen 3 with experts, their weights renormalised."""

from architecture import EXPERTS, HEADS, Architecture, each, expert_config, mixture, stacked_experts

ENTRY = Architecture(
    shapes=each(HEADS, qk_norm=True, change=mixture, metadata=EXPERTS),
    faults=("norm_plus_one@k_norm", "rope_theta=1e6", "attn_scale"),
    model_type="qwen3_moe",
    config=lambda model: expert_config(model) | {"norm_topk_prob": True},
    extra=stacked_experts,
)
