"""Qwen 3: norms of Q and K."""

from architecture import HEADS, THIRD, YARN, Architecture, each

ENTRY = Architecture(
    shapes=each(HEADS, qk_norm=True) | each({"yarn": THIRD}, qk_norm=True, metadata=YARN),
    faults=("norm_plus_one@q_norm", "rope_theta=1e6", "rope_pairing"),
    model_type="qwen3",
)
