"""Qwen 2: biases on Q, K and V."""

from architecture import EVEN, YARN, Architecture, each

ENTRY = Architecture(
    shapes=each(EVEN, bias=True) | each({"yarn": EVEN["third"]}, bias=True, metadata=YARN),
    faults=("qkv_bias", "rope_pairing", "norm_eps=1e-3"),
    model_type="qwen2",
)
