"""What goes on inside the experts of a transformers model, taken from its own computation as it runs.

transformers has all experts of a layer in one module without submodules, so there is nothing to hook.  Its
eager forward is a loop over experts: the tokens of one (`torch.where`), gate and up as halves of one product,
the activation, the product with down, the weights, and the sum (`index_add_`).  Every call of torch in that
loop is seen by a `TorchFunctionMode`, and what it reads or gives is kept: nothing is computed again here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

INSIDE = ("expert_gate", "expert_up", "expert_act", "expert_out")
Take = Callable[[Any], None]


def watch(module: Any, name: str, take: Take) -> Callable[[], None]:
    """From now on each forward of `module`, a layer's experts, calls `take` with `name` [1, token, slot, n].

    Returns what ends that.  Other implementations than eager are no loop: nothing is taken of them.
    """
    forward = module.forward
    module.forward = partial(_followed, forward, name, take)
    return partial(_restore, module, forward)


def _restore(module: Any, forward: Callable[..., Any]) -> None:
    del module.forward
    if module.forward != forward:  # it was an attribute of the module, not a method of its class
        module.forward = forward


def _followed(forward: Callable[..., Any], name: str, take: Take, *args: Any, **kwargs: Any) -> Any:
    from torch.overrides import TorchFunctionMode

    loop = _Loop(name)

    class Follow(TorchFunctionMode):
        def __torch_function__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = call(*args, **(kwargs or {}))
            loop.saw(call.__name__, args, result)
            return result

    with Follow():
        output = forward(*args, **kwargs)
    if loop.rows is not None:
        take(loop.rows[None])
    return output


class _Loop:
    """One tensor, gathered expert by expert: `rows` [token, slot, n]."""

    def __init__(self, name: str):
        self.rows: Any = None
        self._name = name
        self._latest: Any = None
        self._expert: tuple[Any, Any] | None = None  # slots and tokens of the one that is computed now
        self._sizes = (0, 0)

    def saw(self, call: str, args: tuple, result: Any) -> None:
        if call == "where" and len(args) == 1:
            self._expert, self._sizes = result, (args[0].shape[1], args[0].shape[0])
        elif self._expert and call == "index_add_":
            if self._latest is not None:
                self._put(*self._expert, self._latest)
            self._expert = self._latest = None
        elif self._expert:
            self._latest = _shown(call, args, result).get(self._name, self._latest)

    def _put(self, slots: Any, tokens: Any, values: Any) -> None:
        if self.rows is None:
            self.rows = values.new_full((*self._sizes, values.shape[-1]), float("nan"))
        self.rows[tokens, slots] = values


def _shown(call: str, args: tuple, result: Any) -> dict[str, Any]:
    """What one call of the loop shows; of two calls that show the same, the later one is right."""
    if call == "chunk" and len(result) == 2:
        return {"expert_gate": result[0], "expert_up": result[1]}
    if call == "__getitem__" and isinstance(args[1], tuple) and args[1][0] is Ellipsis:  # gpt-oss: [..., ::2]
        return {"expert_up" if args[1][1].start else "expert_gate": result}
    if call in ("linear", "matmul"):  # of the two, that with down comes last
        return {"expert_act": args[0]}
    if call == "mul" and getattr(args[1], "shape", ())[-1:] == (1,):  # the weight of each token
        return {"expert_out": args[0]}
    return {}
