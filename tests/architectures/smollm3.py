"""SmolLM 3: no positions in every fourth layer."""

from architecture import HEADS, THIRD, YARN, Architecture, each, half_split

ENTRY = Architecture(
    shapes=each(HEADS, layers=5) | each({"yarn": THIRD}, layers=5, metadata=YARN),
    faults=("rope_pairing", "rope_position", "gqa_map"),
    model_type="smollm3",
    weight=half_split,
)
