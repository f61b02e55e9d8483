"""Other engines' names in our vocabulary."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensortrace.tracer.names import NAMES, Key
from tensortrace.tracer.translate import (
    BY_WEIGHT,
    LENS,
    LLAMA_CPP,
    MODULES,
    own_key,
    translate,
    translate_all,
)

KNOWN = {
    "q": (None, "q"),
    "blk.3.q": (3, "q"),
    "layers.0.gate": (0, "gate"),
    "q_rope-12": (12, "q_rope"),
    "attn_out_l3": (3, "attn_out"),
    "Qcur-0": (0, "q"),
    "l_out-5": (5, "resid_out"),
    "result_output": (None, "logits"),
    "model.embed_tokens": (None, "embd"),
    "model.layers.3.self_attn.q_proj": (3, "q"),
    "model.layers.3.self_attn.q_proj.output.0": (3, "q"),
    "model.layers.0.mlp.down_proj.input.0": (0, "act"),
    "model.layers.12.output.0": (12, "resid_out"),
    "model.layers.12": (12, "resid_out"),
    "model.norm": (None, "final_norm"),
    "lm_head": (None, "logits"),
    "blocks.4.attn.hook_pattern": (4, "probs"),
    "blocks.4.hook_resid_post": (4, "resid_out"),
    "ln_final.hook_normalized": (None, "final_norm"),
    "q_proj-4": (4, "q"),
    "layers.2.down_proj": (2, "ffn_out"),
    "Q_l3": (3, "q"),
    "blk.0.V": (0, "v"),
}
OWN = {
    "mine": (None, "mine"),
    "norm-0": (0, "norm"),
    "model.layers.2.self_attn.qkv_proj": (2, "self_attn.qkv_proj"),
    "blk.0.attn_output": (0, "attn_output"),  # a weight's name, not `attn`
    "tokens": (None, "tokens_"),  # a trace has something else under this name
    "../../etc/passwd": (None, ".._.._etc_passwd"),
    "..": (None, ".._"),
    "x-99999999": (None, "x-99999999"),
}


@pytest.mark.parametrize(("name", "key"), [*KNOWN.items(), *OWN.items()])
def test_names(name: str, key: tuple[int | None, str]) -> None:
    assert translate(name).key == Key(*key)


def test_the_layer_that_the_source_states_counts() -> None:
    assert translate("self_attn.q_proj", 3).key == Key(3, "q")
    assert translate("kqv_out", 7).key == Key(7, "attn")
    assert translate("scratch", 2).key == Key(2, "scratch")


def test_a_norm_after_attention_is_the_feed_forward_one_only_where_no_other_is() -> None:
    after, before = (f"model.layers.0.{side}_layernorm" for side in ("post_attention", "pre_feedforward"))
    assert translate_all([after])[after].key == Key(0, "ffn_norm")
    both = translate_all([after, before])
    assert (both[after].key.name, both[before].key.name) == ("attn_post_norm", "ffn_norm")


def test_tables_name_what_the_vocabulary_has() -> None:
    for table in (LLAMA_CPP, MODULES, LENS):
        for name, axes in table.values():
            parts = {part.removesuffix("+") for axis in axes for part in axis.split("*")} - {"batch"}
            assert not axes or parts == set(NAMES[name].axes), name
    assert set(BY_WEIGHT.values()) <= set(NAMES)


@given(st.text(max_size=300), st.none() | st.integers(-5, 10**9))
def test_any_name_becomes_one_that_a_file_can_hold(name: str, layer: int | None) -> None:
    for key in (translate(name, layer).key, own_key(layer, name)):
        assert key.layer is None or 0 <= key.layer < 100_000
        assert "/" not in key.name
        assert key.name.strip(".")
        assert key.name.isprintable()
        assert len(key.name) <= 201
