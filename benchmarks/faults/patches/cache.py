"""Keys and values as attention reads them."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from faults.patches.attention import attention, scored
from faults.patching import Break, fault, named


def by_cache(change: Callable[..., Any]) -> Break:
    """A fault by `change(k, v)` of the keys and values that attention reads."""

    def apply(model: Any, stack: ExitStack, where: list[int]) -> None:
        def compute(q: Any, k: Any, v: Any, mask: Any, scaling: float) -> Any:
            k, v = change(k, v)
            probs = scored(q, k, mask, scaling).softmax(-1)
            return probs @ v, probs

        attention(stack, where, compute)

    return apply


def zeroed(x: Any, slot: int) -> Any:
    x = x.clone()
    x[:, :, slot] = 0
    return x


for _name, _ids, _cache in (
    ("cache_shifted", "kv_slot", lambda k, v: (k.roll(1, 2), v.roll(1, 2))),
    ("cache_values_shifted", "kv_slot", lambda k, v: (k, v.roll(1, 2))),
    ("cache_slot_zero", "kv_stale", lambda k, v: (zeroed(k, 4), zeroed(v, 4))),
    ("cache_scaled", "kv_quant_scale", lambda k, v: (2 * k, 2 * v)),
    ("cache_values_scaled", "value_scale", lambda k, v: (k, v / 2)),
):
    fault(_ids, "attn", inside=True)(named(_name, by_cache(_cache)))
