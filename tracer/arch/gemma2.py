"""Gemma 2 (arXiv:2408.00118): `general.architecture = gemma2`.

Embedding times sqrt(dim); RMSNorm before and after both blocks (GGUF holds the whole gain, 1 + w); no biases;
gated GELU; tied head; half-split RoPE pairs.  Scores are capped to 50 tanh(s / 50) before the mask, logits at
30.
Layers 0, 2, 4, … attend within a window of 4096, the others to everything.  The softmax scale is 1/sqrt(head
size), but 1/sqrt(dim / heads) in the 27B model, known by its 46 layers.  Defined in llama.cpp
`src/models/gemma2.cpp`, transformers `models/gemma2/modeling_gemma2.py`.
"""

from ..graph import POSITIONS, TOKENS, Graph
from ..rotation import head_size, rotation
from ..windows import windows

LAYERS_27B = 46


def build(g: Graph) -> None:
    hp = g.model.hparam
    heads, dim, layers = hp("attention.head_count"), hp("embedding_length"), hp("block_count")
    kv_heads = hp("attention.head_count_kv", heads)
    eps = hp("attention.layer_norm_rms_epsilon")
    softcap = hp("attn_logit_softcapping", 50.0)
    scale = (dim // heads if layers == LAYERS_27B else head_size(g.model)) ** -0.5
    rope = rotation(g.model, "half-split")
    window = windows(g.model, every=2, default=4096)

    x = g.op("embd", "embedding", TOKENS, w=("token_embd.weight",), scale=dim**0.5)
    for layer in g.layers(layers):
        h = g.op("attn_norm", "rms_norm", x, w=("attn_norm.weight",), eps=eps)
        q = g.op("q", "linear", h, w=("attn_q.weight",), heads=heads)
        k = g.op("k", "linear", h, w=("attn_k.weight",), heads=kv_heads)
        v = g.op("v", "linear", h, w=("attn_v.weight",), heads=kv_heads)
        q = g.op("q_rope", "rope", q, POSITIONS, **rope)
        k = g.op("k_rope", "rope", k, POSITIONS, **rope)
        a = g.op("attn", "attention", q, k, v, scale=scale, softcap=softcap, window=window[layer])
        a = g.op("attn_out", "linear", a, w=("attn_output.weight",))
        a = g.op("attn_post_norm", "rms_norm", a, w=("post_attention_norm.weight",), eps=eps)
        x = g.op("resid_mid", "add", x, a)
        h = g.op("ffn_norm", "rms_norm", x, w=("ffn_norm.weight",), eps=eps)
        gate = g.op("gate", "linear", h, w=("ffn_gate.weight",))
        up = g.op("up", "linear", h, w=("ffn_up.weight",))
        h = g.op("act", "glu", gate, up, activation="gelu_tanh")
        h = g.op("ffn_out", "linear", h, w=("ffn_down.weight",))
        h = g.op("ffn_post_norm", "rms_norm", h, w=("post_ffw_norm.weight",), eps=eps)
        x = g.op("resid_out", "add", x, h)
    x = g.op("final_norm", "rms_norm", x, w=("output_norm.weight",), eps=eps)
    x = g.op("raw_logits", "linear", x, w=("token_embd.weight",))
    g.op("logits", "scale", x, softcap=hp("final_logit_softcapping", 30.0))
