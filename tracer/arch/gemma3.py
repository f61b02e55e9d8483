"""Gemma 3 (arXiv:2503.19786): `general.architecture = gemma3`.

Embedding times sqrt(dim); RMSNorm before and after both blocks (GGUF holds the whole gain, 1 + w) and over
each head of Q and K; no biases; gated GELU; tied head.  Of every six layers five attend within a window with
RoPE base 10 000, the sixth to everything with the file's base and linear scaling; half-split pairs.  The
softmax scale is 1/sqrt(head size), but 1/sqrt(dim / heads) in the 27B model, known by its 62 layers.  Defined
in llama.cpp `src/models/gemma3.cpp`, transformers `models/gemma3/modeling_gemma3.py`.
"""

from ..graph import POSITIONS, TOKENS, Graph
from ..rotation import head_size, rotation
from ..windows import windows

LAYERS_27B = 62


def build(g: Graph) -> None:
    hp = g.model.hparam
    heads, dim, layers = hp("attention.head_count"), hp("embedding_length"), hp("block_count")
    kv_heads = hp("attention.head_count_kv", heads)
    eps = hp("attention.layer_norm_rms_epsilon")
    softcap = hp("final_logit_softcapping", 0.0)
    scale = (dim // heads if layers == LAYERS_27B else head_size(g.model)) ** -0.5
    everywhere = rotation(g.model, "half-split")
    local = rotation(g.model, "half-split", base=hp("rope.freq_base_swa", 10000.0), scaled=False)
    window = windows(g.model, every=6)

    x = g.op("embd", "embedding", TOKENS, w=("token_embd.weight",), scale=dim**0.5)
    for layer in g.layers(layers):
        rope = local if window[layer] else everywhere
        h = g.op("attn_norm", "rms_norm", x, w=("attn_norm.weight",), eps=eps)
        q = g.op("q", "linear", h, w=("attn_q.weight",), heads=heads)
        k = g.op("k", "linear", h, w=("attn_k.weight",), heads=kv_heads)
        v = g.op("v", "linear", h, w=("attn_v.weight",), heads=kv_heads)
        q = g.op("q_norm", "rms_norm", q, w=("attn_q_norm.weight",), eps=eps)
        k = g.op("k_norm", "rms_norm", k, w=("attn_k_norm.weight",), eps=eps)
        q = g.op("q_rope", "rope", q, POSITIONS, **rope)
        k = g.op("k_rope", "rope", k, POSITIONS, **rope)
        a = g.op("attn", "attention", q, k, v, scale=scale, window=window[layer])
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
    if softcap:
        x = g.op("raw_logits", "linear", x, w=(g.head,))
        g.op("logits", "scale", x, softcap=softcap)
    else:
        g.op("logits", "linear", x, w=(g.head,))
