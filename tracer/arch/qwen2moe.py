"""Qwen 1.5 and 2 mixture of experts (arXiv:2407.10671): `general.architecture = qwen2moe`.

Attention as in Qwen 2: pre-norm RMSNorm, biases on Q, K and V, half-split RoPE pairs.  Every feed-forward
block adds two things: a mixture of SwiGLU experts, whose weights are probabilities over all experts and not
renormalised (norm_topk_prob false), and one SwiGLU expert that all tokens share, times sigmoid(h . gate).
Defined in llama.cpp `src/models/qwen2moe.cpp`, transformers `models/qwen2_moe/modeling_qwen2_moe.py`.
"""

from ..experts import experts
from ..graph import POSITIONS, TOKENS, Graph
from ..rotation import head_size, rotation


def build(g: Graph) -> None:
    hp = g.model.hparam
    heads = hp("attention.head_count")
    kv_heads = hp("attention.head_count_kv", heads)
    eps = hp("attention.layer_norm_rms_epsilon")
    rope = rotation(g.model, "half-split")

    x = g.op("embd", "embedding", TOKENS, w=("token_embd.weight",))
    for _ in g.layers(hp("block_count")):
        h = g.op("attn_norm", "rms_norm", x, w=("attn_norm.weight",), eps=eps)
        q = g.op("q", "linear", h, w=("attn_q.weight", "attn_q.bias?"), heads=heads)
        k = g.op("k", "linear", h, w=("attn_k.weight", "attn_k.bias?"), heads=kv_heads)
        v = g.op("v", "linear", h, w=("attn_v.weight", "attn_v.bias?"), heads=kv_heads)
        q = g.op("q_rope", "rope", q, POSITIONS, **rope)
        k = g.op("k_rope", "rope", k, POSITIONS, **rope)
        a = g.op("attn", "attention", q, k, v, scale=head_size(g.model) ** -0.5)
        a = g.op("attn_out", "linear", a, w=("attn_output.weight",))
        x = g.op("resid_mid", "add", x, a)
        h = g.op("ffn_norm", "rms_norm", x, w=("ffn_norm.weight",), eps=eps)
        y = experts(g, h, out="moe_out", renormalised=False, activation="silu")
        gate = g.op("gate", "linear", h, w=("ffn_gate_shexp.weight",))
        up = g.op("up", "linear", h, w=("ffn_up_shexp.weight",))
        a = g.op("act", "glu", gate, up, activation="silu")
        shared = g.op("shared_out", "linear", a, w=("ffn_down_shexp.weight",))
        h = g.op("ffn_out", "gated_add", y, shared, h, w=("ffn_gate_inp_shexp.weight",))
        x = g.op("resid_out", "add", x, h)
    x = g.op("final_norm", "rms_norm", x, w=("output_norm.weight",), eps=eps)
    g.op("logits", "linear", x, w=(g.head,))
