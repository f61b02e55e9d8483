import math

import numpy as np

from ..cause import Cause


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


ACTIVATIONS = {
    "gelu_erf": lambda x: 0.5 * x * (1 + _erf(x / 2**0.5)),
    "gelu_tanh": _tanh,
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "none": lambda x: x,
}


OURS = {"gelu": "gelu_tanh"}  # what kernels/glu.py calls it


class Activation(Cause):
    """The activation is another one: GELU for SiLU, the exact GELU for the tanh one, none at all.

    Megatron-Bridge#4661, mlx-embeddings#81. Exact and tanh GELU differ by 5e-4 at most.
    """

    id = "activation"
    fix = "use the activation that the model was trained with (silu for llama, gelu_tanh for Gemma)"
    default = "gelu_tanh"
    choices = tuple(ACTIVATIONS)
    tell = "gate and act in float32"
    fires = ("activation", "activation@1=relu", "activation=gelu_erf", "activation@0=none")
    quiet = ("gate_up_swap", "weight_other@gate=ffn_up")

    def applies(self, op):
        return op.kind == "glu"

    def change(self, op, value, model):
        right = op.params.get("activation", "silu")
        if value == OURS.get(right, right):
            return op

        def wrap(compute):
            def other(gate, up, **params):
                with np.errstate(over="ignore"):
                    return (ACTIVATIONS[value](gate) * up).astype(gate.dtype)

            return other

        return op.wrapped(wrap)
