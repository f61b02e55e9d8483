"""Phi 3, 3.5 and 4 (arXiv:2404.14219): `general.architecture = phi3`.

As Llama (pre-norm RMSNorm, grouped-query attention, SwiGLU, no biases), but Q, K and V are one product and so
are gate and up, the gate's rows first; half-split RoPE pairs, in some models on a part of the head only
(rope.dimension_count).  LongRoPE in models with a long context: each step takes the long factors once it
reaches past the original context, as transformers does; llama.cpp takes those of the context size for the
whole run.  Where the file states a window, all layers have it: the models' configuration and transformers say
so, while llama.cpp leaves windows of this architecture out.  Defined in llama.cpp `src/models/phi3.cpp`,
transformers `models/phi3/modeling_phi3.py`.
"""

from itertools import pairwise

from ..graph import POSITIONS, TOKENS, Graph
from ..rotation import LONG_FACTORS, head_size, rotation
from ..windows import windows


def build(g: Graph) -> None:
    hp = g.model.hparam
    heads = hp("attention.head_count")
    kv_heads = hp("attention.head_count_kv", heads)
    eps = hp("attention.layer_norm_rms_epsilon")
    ff = hp("feed_forward_length")
    size = head_size(g.model)
    ends = (0, heads * size, (heads + kv_heads) * size, (heads + 2 * kv_heads) * size)
    q_rows, k_rows, v_rows = (f"[{first}:{last}]" for first, last in pairwise(ends))
    rope = rotation(g.model, "half-split")
    window = windows(g.model, every=0)

    x = g.op("embd", "embedding", TOKENS, w=("token_embd.weight",))
    for layer in g.layers(hp("block_count")):
        h = g.op("attn_norm", "rms_norm", x, w=("attn_norm.weight",), eps=eps)
        q = g.op("q", "linear", h, w=("attn_qkv.weight" + q_rows,), heads=heads)
        k = g.op("k", "linear", h, w=("attn_qkv.weight" + k_rows,), heads=kv_heads)
        v = g.op("v", "linear", h, w=("attn_qkv.weight" + v_rows,), heads=kv_heads)
        q = g.op("q_rope", "rope", q, POSITIONS, w=LONG_FACTORS, **rope)
        k = g.op("k_rope", "rope", k, POSITIONS, w=LONG_FACTORS, **rope)
        a = g.op("attn", "attention", q, k, v, scale=size**-0.5, window=window[layer])
        a = g.op("attn_out", "linear", a, w=("attn_output.weight",))
        x = g.op("resid_mid", "add", x, a)
        h = g.op("ffn_norm", "rms_norm", x, w=("ffn_norm.weight",), eps=eps)
        gate = g.op("gate", "linear", h, w=(f"ffn_up.weight[0:{ff}]",))
        up = g.op("up", "linear", h, w=(f"ffn_up.weight[{ff}:{2 * ff}]",))
        h = g.op("act", "glu", gate, up, activation="silu")
        h = g.op("ffn_out", "linear", h, w=("ffn_down.weight",))
        x = g.op("resid_out", "add", x, h)
    x = g.op("final_norm", "rms_norm", x, w=("output_norm.weight",), eps=eps)
    g.op("logits", "linear", x, w=(g.head,))
