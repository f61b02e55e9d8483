"""Granite 3 (dense): `general.architecture = granite`.

As Llama (pre-norm RMSNorm, grouped-query attention, SwiGLU; interleaved RoPE pairs, as GGUF permutes Q and K
for them) with four multipliers: of the embedding (embedding_scale), of what each block adds to the residual
stream (residual_scale), of the scores in place of 1/sqrt(head size) (attention.scale), and a divisor of the
logits (logit_scale).  Defined in llama.cpp `src/models/granite.cpp`, transformers
`models/granite/modeling_granite.py`.
"""

from ..graph import POSITIONS, TOKENS, Graph
from ..rotation import FACTORS, head_size, rotation


def build(g: Graph) -> None:
    hp = g.model.hparam
    heads = hp("attention.head_count")
    kv_heads = hp("attention.head_count_kv", heads)
    eps = hp("attention.layer_norm_rms_epsilon")
    residual = hp("residual_scale", 0.0) or 1.0
    scale = hp("attention.scale", 0.0) or head_size(g.model) ** -0.5
    rope = rotation(g.model, "interleaved")

    x = g.op("embd", "embedding", TOKENS, w=("token_embd.weight",), scale=hp("embedding_scale", 0.0) or 1.0)
    for _ in g.layers(hp("block_count")):
        h = g.op("attn_norm", "rms_norm", x, w=("attn_norm.weight",), eps=eps)
        q = g.op("q", "linear", h, w=("attn_q.weight", "attn_q.bias?"), heads=heads)
        k = g.op("k", "linear", h, w=("attn_k.weight", "attn_k.bias?"), heads=kv_heads)
        v = g.op("v", "linear", h, w=("attn_v.weight", "attn_v.bias?"), heads=kv_heads)
        q = g.op("q_rope", "rope", q, POSITIONS, w=FACTORS, **rope)
        k = g.op("k_rope", "rope", k, POSITIONS, w=FACTORS, **rope)
        a = g.op("attn", "attention", q, k, v, scale=scale)
        a = g.op("attn_out", "linear", a, w=("attn_output.weight", "attn_output.bias?"))
        x = g.op("resid_mid", "add", x, a, scale=residual)
        h = g.op("ffn_norm", "rms_norm", x, w=("ffn_norm.weight",), eps=eps)
        gate = g.op("gate", "linear", h, w=("ffn_gate.weight", "ffn_gate.bias?"))
        up = g.op("up", "linear", h, w=("ffn_up.weight", "ffn_up.bias?"))
        h = g.op("act", "glu", gate, up, activation="silu")
        h = g.op("ffn_out", "linear", h, w=("ffn_down.weight", "ffn_down.bias?"))
        x = g.op("resid_out", "add", x, h, scale=residual)
    x = g.op("final_norm", "rms_norm", x, w=("output_norm.weight",), eps=eps)
    x = g.op("raw_logits", "linear", x, w=(g.head,))
    g.op("logits", "scale", x, factor=1.0 / hp("logit_scale"))
