from ..cause import Cause


class TokensBos(Cause):
    """The beginning-of-sequence token is doubled, missing or added where the model wants none."""

    id = "tokens_bos"
    fix = "add BOS exactly once: in the template or in the tokeniser, as tokenizer.ggml.add_bos_token says"

    def change_ids(self, ids, metadata):
        return [int(metadata.get("tokenizer.ggml.bos_token_id", 1)), *ids]
