"""The independent reference: transformers' own Llama on the same GGUF, every intermediate in our names.

Importing this needs the `torch` extra.  Forward hooks see the projections, norms and the residual stream; a
function put into transformers' registry of attention implementations sees what goes on inside attention.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from tensortrace.tracer.names import Key
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

TILE = 128


def load(gguf: Path) -> PreTrainedModel:
    """The model in float32 with plain (eager) attention."""
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def interleaved(half_split: np.ndarray) -> np.ndarray:
    """Q or K [..., dim] of transformers in GGUF's order of elements.

    transformers rotates the pairs (i, i + dim/2) and permutes the weights on loading to suit; GGUF rotates
    (2i, 2i + 1).  So element i comes from 2i, and i + dim/2 from 2i + 1.
    """
    *outer, dim = half_split.shape
    return half_split.reshape(*outer, 2, dim // 2).swapaxes(-1, -2).reshape(*outer, dim)


class Capture:
    """Runs the model step by step (a KV cache between them) and keeps what it computes.

    transformers has no m and l; they are told from its scores unless `tile` is None.
    """

    def __init__(self, model: PreTrainedModel, tile: int | None = TILE):
        self.model, self.tile = model, tile
        self.cache = DynamicCache()
        self.seen: dict[Key, np.ndarray] = {}

    def step(self, ids: Sequence[int]) -> dict[Key, np.ndarray]:
        """Feed `ids`; every tensor of the step, shaped as the trace's axes say."""
        self.seen = {}
        with torch.no_grad(), ExitStack() as hooks:
            self._hook(hooks)
            output = self.model(torch.tensor([list(ids)]), past_key_values=self.cache, use_cache=True)
        self.seen[Key(None, "logits")] = output.logits[0].numpy()
        return self.seen

    def _hook(self, hooks: ExitStack) -> None:
        ALL_ATTENTION_FUNCTIONS["eager"] = self._attention
        hooks.callback(ALL_ATTENTION_FUNCTIONS.pop, "eager")
        decoder = self.model.model
        self._output(hooks, decoder.embed_tokens, Key(None, "embd"))
        self._output(hooks, decoder.norm, Key(None, "final_norm"))
        for index, layer in enumerate(decoder.layers):
            outputs = {
                "attn_norm": layer.input_layernorm,
                "q": layer.self_attn.q_proj,
                "k": layer.self_attn.k_proj,
                "v": layer.self_attn.v_proj,
                "attn_out": layer.self_attn.o_proj,
                "ffn_norm": layer.post_attention_layernorm,
                "gate": layer.mlp.gate_proj,
                "up": layer.mlp.up_proj,
                "ffn_out": layer.mlp,
                "resid_out": layer,
            }
            for name, module in outputs.items():
                self._output(hooks, module, Key(index, name))
            self._input(hooks, layer.post_attention_layernorm, Key(index, "resid_mid"))
            self._input(hooks, layer.mlp.down_proj, Key(index, "act"))

    def _output(self, hooks: ExitStack, module: torch.nn.Module, key: Key) -> None:
        def keep(_module, _inputs, output) -> None:
            self._keep(key, output)

        hooks.callback(module.register_forward_hook(keep).remove)

    def _input(self, hooks: ExitStack, module: torch.nn.Module, key: Key) -> None:
        def keep(_module, inputs) -> None:
            self._keep(key, inputs[0])

        hooks.callback(module.register_forward_pre_hook(keep).remove)

    def _keep(self, key: Key, tensor: torch.Tensor) -> None:
        array = tensor[0].numpy()
        if key.name in ("q", "k", "v"):
            array = array.reshape(len(array), -1, self.model.config.head_dim)
        self.seen[key] = interleaved(array) if key.name in ("q", "k") else array

    def _attention(self, module, query, key, value, mask, *, scaling, **_) -> tuple:
        """transformers' `eager_attention_forward`, keeping its parts.  Arrays are [1, head, token, dim]."""
        group = module.num_key_value_groups
        keys, values = (x.repeat_interleave(group, dim=1) for x in (key, value))
        scores = query @ keys.transpose(2, 3) * scaling
        if mask is not None:
            scores = scores.masked_fill(mask < 0, -torch.inf)
        probs = scores.softmax(-1)
        attn = (probs @ values).transpose(1, 2).contiguous()
        new = key[:, :, -query.shape[2] :]
        parts = {
            "q_rope": interleaved(query[0].transpose(0, 1).numpy()),
            "k_rope": interleaved(new[0].transpose(0, 1).numpy()),
            "scores": scores[0].numpy(),
            "probs": probs[0].numpy(),
            "attn": attn[0].numpy(),
        }
        if self.tile is not None:
            parts |= _running_softmax(scores[0], self.tile)
        self.seen |= {Key(module.layer_idx, name): array for name, array in parts.items()}
        return attn, probs


def _running_softmax(scores: torch.Tensor, tile: int) -> dict[str, np.ndarray]:
    """m and l [head, query], and [tile, head, query] of the keys up to the end of each tile."""
    ends = range(tile, scores.shape[-1] + tile, tile)
    tops = torch.stack([scores[..., :end].amax(-1) for end in ends]).numpy()
    sums = [(scores[..., :end] - torch.tensor(top)[..., None]).exp().sum(-1) for end, top in zip(ends, tops)]
    sums = torch.stack(sums).numpy()
    return {"m_tiles": tops, "l_tiles": sums, "m": tops[-1], "l": sums[-1]}
