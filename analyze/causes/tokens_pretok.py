from ...tracer.errors import UserError
from ...tracer.pretokenizers import RULES
from ...tracer.tokenizer import Tokenizer
from ..cause import Cause


class TokensPretok(Cause):
    """The prompt is cut into words by another rule than the vocabulary was made with, so that others merge.

    llama.cpp#6914 (Llama 3's rule absent: digits cut otherwise). The text is the same, its ids are not. Told
    from the prompt's text and ids where a trace holds both, and the model's own tokeniser.
    """

    id = "tokens_pretok"
    fix = "cut text by the rule that tokenizer.ggml.pre names before merging"

    def change_ids(self, ids, metadata):
        """The ids that the first rule gives that makes others of the same text."""
        text = Tokenizer(metadata).decode(ids)
        for name in RULES:
            made = Tokenizer({**metadata, "tokenizer.ggml.pre": name}).encode(text, add_special=False)
            if made != [*ids]:
                return made
        raise UserError("--inject tokens_pretok: every rule cuts this prompt alike; take one with numbers")
