"""How byte-level BPE vocabularies cut text into words before merging, by `tokenizer.ggml.pre`.

The reference for which name means what is llama.cpp (src/llama-vocab.cpp), also where it only approximates
what a model was trained with (`gpt-4o` and `tekken` tell letter case apart in ASCII alone): a trace has to
hold the tokens that an engine is fed.
"""

from dataclasses import dataclass

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split

from .errors import ModelError

_SUFFIX = r"'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL][lL])"  # don't, they'RE; not (?i:), which folds ſ into s
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_WORD_MARKS = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+"
_SPACES = r"\s+(?!\S)|\s+"
_REST = rf"{_SYMBOLS}[\r\n]*|\s*[\r\n]+|{_SPACES}"
_REST_SLASH = rf"{_SYMBOLS}[\r\n/]*|\s*[\r\n]+|{_SPACES}"

_GPT2 = rf"'(?:[stmd]|re|ve|ll)| ?\p{{L}}+| ?\p{{N}}+|{_SYMBOLS}|\s+(?!\S)"
_LLAMA3 = rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_SUFFIX}|{_WORD}|\p{{N}}|{_REST}"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_HALVING_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")) + r"|\s"
_THREES_FROM_THE_RIGHT = r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"  # text before a number stays with it

# Letter case is told apart in a-z and A-Z only: any other letter may both start and continue a word.
_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
_UPPER_MARKS, _LOWER_MARKS = r"[\p{L}\p{M}&&[^a-z]]", r"[\p{L}\p{M}&&[^A-Z]]"
_ANY = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = rf"{_ANY}{_UPPER}*{_LOWER}+|{_ANY}{_UPPER}+{_LOWER}*|\p{{N}}|{_REST_SLASH}"
_GPT4O = (
    rf"{_ANY}{_UPPER}*{_LOWER}+(?:{_SUFFIX})?|{_ANY}{_UPPER}+{_LOWER}*(?:{_SUFFIX})?"
    rf"|\p{{N}}{{1,3}}|{_REST_SLASH}"
)
_GPT4O_MARKS = _GPT4O.replace(_UPPER, _UPPER_MARKS).replace(_LOWER, _LOWER_MARKS)

_HAN = (
    r"\x{3400}-\x{4DBF}\x{4E00}-\x{9FFF}\x{F900}-\x{FAFF}"
    r"\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}\x{2F800}-\x{2FA1F}"
)
_HAN_KANA = r"[\x{3040}-\x{30FF}\x{4E00}-\x{9FA5}]+"
_DEEPSEEK_CJK = r"[\x{800}-\x{9FA5}\x{AC00}-\x{D7FF}&&[^\s]]+"
# Cased letters, less the mathematical alphabets and what Unicode gained after the vocabulary was made.
_DEEPSEEK_LETTER = (
    r"[\p{Lu}\p{Ll}\p{Lt}&&[^\x{560}-\x{588}\x{10C6}-\x{10FF}\x{1C80}-\x{1C8F}\x{2D00}-\x{2D2F}\x{A78F}-\x{A7FF}"
    r"\x{AB30}-\x{AB6F}\x{10570}-\x{105BF}\x{10D00}-\x{10DFF}\x{16E40}-\x{16EFF}\x{1D400}-\x{1DFFF}]]"
)
_DEEPSEEK_WORD = r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = rf"{_DEEPSEEK_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}"
_AFMOE_SCRIPTS = (  # Thai, Lao, Myanmar, Hangul Jamo, Khmer, radicals, kana, and all from Han to Hangul
    r"[\x{E40}-\x{EFF}\x{1000}-\x{109F}\x{1100}-\x{11FF}\x{1780}-\x{17FF}\x{2F00}-\x{2FDF}\x{3040}-\x{30FF}"
    r"\x{3400}-\x{4DBF}\x{4E00}-\x{FAFF}\x{FF65}-\x{FF9F}]+"
)


@dataclass(frozen=True)
class Rule:
    """What a name in `tokenizer.ggml.pre` means.

    `splits` are applied in turn, each to the pieces that the one before left. Both matches and the text
    between them become pieces, and no merge crosses from one piece into the next.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token is taken whole, even if no merges lead there
    add_bos: bool = False  # unless the file says otherwise

    def pre_tokenizer(self) -> PreTokenizer:
        """The splits, then bytes as the printable characters that byte-level vocabularies spell them with."""
        splits = [Split(Regex(expression), behavior="isolated") for expression in self.splits]
        return Sequence([*splits, ByteLevel(add_prefix_space=False, use_regex=False)])


_RULES = {
    "default": Rule((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9]{3}")),
    "gpt-2 phi-2 jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe gigachat mellum "
    "mpt olmo a.x-4.0 modern-bert exaone4 jais trillion granite-docling": Rule((_GPT2,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": Rule((r"\p{N}", _GPT2)),
    "falcon": Rule((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9]{3}")),
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano": Rule(
        (_LLAMA3,), ignore_merges=True, add_bos=True
    ),
    "dbrx smaug-bpe chatglm-bpe": Rule((_LLAMA3,)),
    "glm4 glm5": Rule((_LLAMA3,), ignore_merges=True),
    "jais-2": Rule((_LLAMA3.replace(_SPACES, _HALVING_SPACES),)),
    "minicpm5": Rule((r"\p{N}{1,3}", rf"{_SUFFIX}|{_WORD}|\p{{N}}+|{_REST}"), ignore_merges=True),
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": Rule((_QWEN2,)),
    "laguna": Rule((r"[^\n]+|\n+", _QWEN2)),
    "ufakzeka": Rule((rf"{_WORD}|\p{{N}}|{_REST}",)),
    "qwen35": Rule(
        (rf"{_SUFFIX}|{_WORD_MARKS}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}",)
    ),
    "bailingmoe bailingmoe2 llada-moe": Rule(
        (rf"{_SUFFIX}|{_WORD}|\p{{N}}|{_SYMBOLS}[\r\n]*|\s*[\r\n]|{_SPACES}",)
    ),
    "seed-coder": Rule((rf"{_SUFFIX}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|{_SPACES}",)),
    "exaone-moe": Rule(
        (
            rf"{_SUFFIX}|{_ANY}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            rf"|{_SYMBOLS}[\r\n/]?|\s*[\r\n]|{_SPACES}",
        )
    ),
    "tekken": Rule((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o llama4 kanana2 talkie minimax-m2": Rule((_GPT4O,)),
    "granite-embed-multi-97m": Rule((_GPT4O_MARKS,), ignore_merges=True),
    "tiny_aya cohere2moe": Rule(
        (_THREES_FROM_THE_RIGHT, rf"{_WORD_MARKS}(?:{_SUFFIX})?|\p{{N}}{{1,3}}|{_REST_SLASH}")
    ),
    "youtu": Rule(
        (
            rf"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|{_HAN_KANA}",
            rf"{_WORD_MARKS}(?:{_SUFFIX})?|\p{{N}}|{_REST_SLASH}",
        ),
        ignore_merges=True,
    ),
    "kimi-k2": Rule((rf"[{_HAN}]+|{_ANY}[\p{{L}}&&[^{_HAN}]]+(?:{_SUFFIX})?|\p{{N}}{{1,3}}|{_REST}",)),
    "deepseek-llm": Rule(
        (
            r"[\r\n]",
            rf"\s?{_DEEPSEEK_LETTER}+",
            r"\s?[!-/:-~！-／：-～‘-‟、。]+",
            r"\s+$",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": Rule((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": Rule((r"\p{N}{1,3}", _HAN_KANA, _DEEPSEEK3)),
    "spark2_5": Rule(
        (r"\p{N}{1,3}", _HAN_KANA, rf"{_DEEPSEEK_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|{_SPACES}", r"\p{N}")
    ),
    "afmoe": Rule((_THREES_FROM_THE_RIGHT, _AFMOE_SCRIPTS, _DEEPSEEK3)),
    "superbpe": Rule((r"\p{N}+", "(?=([0-9]{3})+(?![0-9]))")),
    "bloom gpt3-finnish poro-chat": Rule((_BLOOM,)),
    "viking": Rule((_BLOOM, r"\p{N}")),
    "chameleon": Rule(
        (
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
}
RULES = {name: rule for names, rule in _RULES.items() for name in names.split()}


def rule(name: str) -> Rule:
    """The rule for a `tokenizer.ggml.pre`; ModelError, listing the names there are, for an unknown one."""
    if name not in RULES:
        known = ", ".join(sorted(RULES))
        raise ModelError(f"tokenizer.ggml.pre {name!r} is not supported; supported are {known}")
    return RULES[name]
