"""Forward hooks that take our tensors out of a PyTorch module: of a transformers decoder, or by patterns."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import torch_experts
from .errors import ModelError, UserError
from .names import Key
from .recorder import Recorder

Keep = Callable[[Key, Any], None]
Place = tuple[str, bool]  # a module inside a layer, and whether its input is meant instead of its output

_LAYER: dict[str, Place] = {
    "attn_norm": ("input_layernorm", False),
    "q": ("self_attn.q_proj", False),
    "k": ("self_attn.k_proj", False),
    "v": ("self_attn.v_proj", False),
    "q_norm": ("self_attn.q_norm", False),
    "k_norm": ("self_attn.k_norm", False),
    "attn_out": ("self_attn.o_proj", False),
    "gate": ("mlp.gate_proj", False),
    "up": ("mlp.up_proj", False),
    "act": ("mlp.down_proj", True),
    "shared_out": ("mlp.shared_expert", False),
    "ffn_out": ("mlp", False),
    "resid_out": ("", False),
}
_PRE_NORM: dict[str, Place] = {
    "ffn_norm": ("post_attention_layernorm", False),
    "resid_mid": ("post_attention_layernorm", True),
}
_POST_NORM: dict[str, Place] = {
    "attn_post_norm": ("post_attention_layernorm", False),
    "resid_mid": ("mlp", True),
    "ffn_post_norm": ("post_feedforward_layernorm", False),
}
_BOTH_NORMS: dict[str, Place] = _POST_NORM | {
    "resid_mid": ("pre_feedforward_layernorm", True),
    "ffn_norm": ("pre_feedforward_layernorm", False),
}

_GPT2: dict[str, Place] = {
    "attn_norm": ("ln_1", False),
    "attn_out": ("attn.c_proj", False),
    "resid_mid": ("ln_2", True),
    "ffn_norm": ("ln_2", False),
    "up": ("mlp.c_fc", False),
    "act": ("mlp.c_proj", True),
    "ffn_out": ("mlp", False),
    "resid_out": ("", False),
}
# a module of the decoder -> what it gives, where it has it
_GLOBAL = {"wte": "tok_embd", "wpe": "pos_embd", "norm": "final_norm", "ln_f": "final_norm"}


@dataclass(frozen=True)
class Tap:
    """Where one of our tensors shows: at a module's output or input, or in some columns of it."""

    key: Key
    module: Any
    path: str
    is_input: bool = False
    columns: tuple[int, int] | None = None
    item: int = 0  # of an output that is a tuple

    @property
    def source(self) -> str:
        return f"{self.path} (input)" if self.is_input else self.path

    def watch(self, keep: Keep) -> Callable[[], None]:
        """From now on `keep` is called with what shows here; returns what ends that."""
        side = "register_forward_pre_hook" if self.is_input else "register_forward_hook"
        return getattr(self.module, side)(partial(_take, self, keep), with_kwargs=True).remove


class ExpertTap(Tap):
    """A tensor inside the experts of a layer; `module` computes them all."""

    def watch(self, keep: Keep) -> Callable[[], None]:
        return torch_experts.watch(self.module, self.key.name, partial(keep, self.key))


def taps(model: Any) -> list[Tap]:
    """Where a transformers decoder shows our tensors, all but those inside attention and the logits."""
    decoder = model.get_decoder()
    root = next(path for path, module in model.named_modules() if module is decoder)
    inner_of = next((name for name in ("layers", "h") if hasattr(decoder, name)), None)
    if inner_of is None:
        raise ModelError(f"{type(model).__name__} has no list of layers: hook it with record_module instead")
    layers = getattr(decoder, inner_of)
    found = [Tap(Key(None, "embd"), layers[0], f"{root}.{inner_of}.0", is_input=True)]
    for inner, name in _GLOBAL.items():
        if hasattr(decoder, inner):
            found.append(Tap(Key(None, name), getattr(decoder, inner), f"{root}.{inner}"))
    text = model.config.get_text_config()
    if getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_scaling", 1) != 1:
        found.append(Tap(Key(None, "raw_logits"), model.get_output_embeddings(), "lm_head"))
    for index, layer in enumerate(layers):
        modules = dict(layer.named_modules())
        path = f"{root}.{inner_of}.{index}"
        for name, (inner, is_input) in _places(modules).items():
            if inner in modules:
                tap = Tap(Key(index, name), modules[inner], f"{path}.{inner}".removesuffix("."), is_input)
                found.append(tap)
        found += _expert_taps(index, path, modules)
        found += _fused_taps(index, path, modules, head_sizes(model.config))
    return found


def _places(modules: Mapping[str, Any]) -> dict[str, Place]:
    """Where a layer shows our tensors; which norm post_attention_layernorm is, its company tells."""
    if "ln_1" in modules:
        return _GPT2
    if "pre_feedforward_layernorm" in modules:
        return _LAYER | _BOTH_NORMS
    return _LAYER | (_POST_NORM if "post_feedforward_layernorm" in modules else _PRE_NORM)


def head_sizes(config: Any) -> tuple[int, int, int]:
    """Heads, KV heads, and the size of a head, of a transformers configuration."""
    text = config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return text.num_attention_heads, getattr(text, "num_key_value_heads", text.num_attention_heads), size


def _fused_taps(
    index: int, path: str, modules: Mapping[str, Any], sizes: tuple[int, int, int]
) -> Iterator[Tap]:
    """Tensors that are columns of one projection."""
    fused = next((name for name in ("self_attn.qkv_proj", "attn.c_attn") if name in modules), None)
    if fused:
        queries, keys = sizes[0] * sizes[2], sizes[1] * sizes[2]
        for name, columns in {
            "q": (0, queries),
            "k": (queries, queries + keys),
            "v": (queries + keys, queries + 2 * keys),
        }.items():
            yield Tap(Key(index, name), modules[fused], f"{path}.{fused}", columns=columns)
    if both := modules.get("mlp.gate_up_proj"):
        half = both.out_features // 2
        for name, first in (("gate", 0), ("up", half)):
            yield Tap(Key(index, name), both, f"{path}.mlp.gate_up_proj", columns=(first, first + half))


def _expert_taps(index: int, path: str, modules: Mapping[str, Any]) -> Iterator[Tap]:
    """What the router of a mixture of experts gives, the experts, and the block that all tokens share."""
    for inner in ("mlp.gate", "mlp.router"):
        if inner in modules:
            for item, name in enumerate(("router", "expert_weights", "expert_ids")):
                yield Tap(Key(index, name), modules[inner], f"{path}.{inner}", item=item)
    if experts := modules.get("mlp.experts"):
        for name in torch_experts.INSIDE:
            yield ExpertTap(Key(index, name), experts, f"{path}.mlp.experts")
    if "mlp.shared_expert" in modules:
        yield Tap(Key(index, "moe_out"), modules["mlp.experts"], f"{path}.mlp.experts")
        for name, inner in (("gate", "gate_proj"), ("up", "up_proj"), ("act", "down_proj")):
            module = f"mlp.shared_expert.{inner}"
            yield Tap(Key(index, name), modules[module], f"{path}.{module}", is_input=name == "act")


@contextmanager
def watched(places: Iterable[Tap], keep: Keep) -> Iterator[None]:
    """While inside, `keep` is called with what shows at each place."""
    with ExitStack() as hooks:
        for tap in places:
            hooks.callback(tap.watch(keep))
        yield


def _take(tap: Tap, keep: Keep, _: Any, args: tuple, kwargs: dict[str, Any], output: Any = None) -> None:
    tensor = (args[0] if args else next(iter(kwargs.values()))) if tap.is_input else output
    tensor = tensor[tap.item] if isinstance(tensor, tuple) else tensor
    keep(tap.key, tensor if tap.columns is None else tensor[..., slice(*tap.columns)])


@contextmanager
def record_module(
    module: Any,
    recorder: Recorder,
    outputs: Mapping[str, str] | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """While inside, every forward pass of a torch module is a step of `recorder`.

    `outputs` and `inputs` map paths of submodules (`encoder.*.attn.to_q`; `*` stands for one part, and a
    number there is the layer) to the names to record them by.  Without them the standard places of a
    transformers decoder are taken, Q and K as transformers orders them; what goes on inside experts shows
    where the model was loaded with `experts_implementation="eager"`.  UserError where a pattern matches
    nothing.

        with Recorder("a.h5", heads=8) as rec, record_module(model, rec, {"blocks.*.to_q": "q"}):
            model(ids)
    """
    if outputs is None and inputs is None:
        places = taps(module)
    else:
        places = [*_matching(module, outputs or {}, False), *_matching(module, inputs or {}, True)]

    def begin(_module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        ids: Any = kwargs.get("input_ids", args[0] if args else None)
        are_ids = ids is not None and not ids.is_floating_point()
        recorder.step(ids.reshape(-1).tolist() if are_ids else ())

    def keep(key: Key, tensor: Any) -> None:
        recorder(key.name, tensor.detach(), layer=key.layer)

    handle = module.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        with watched(places, keep):
            yield
    finally:
        handle.remove()


def _matching(module: Any, patterns: Mapping[str, str], is_input: bool) -> list[Tap]:
    found = []
    for pattern, name in patterns.items():
        path_of = re.compile(re.escape(pattern).replace(r"\*", r"([^.]+)"))
        matches = [
            Tap(Key(_layer(match), name), inner, path, is_input)
            for path, inner in module.named_modules()
            if (match := path_of.fullmatch(path))
        ]
        if not matches:
            raise UserError(f"{pattern!r} matches no part of {type(module).__name__}")
        found += matches
    return found


def _layer(match: re.Match) -> int | None:
    return next((int(part) for part in match.groups() if part.isdigit()), None)
