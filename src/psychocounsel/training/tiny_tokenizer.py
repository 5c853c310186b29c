"""texts -> a tokenizer like Llama 3's, in small: byte-level BPE with the same special tokens and habits.

It is as awkward as the real one on purpose: it writes a beginning-of-text token of its own accord, so that a
rendered chat that is tokenized a second time has two; it has no padding token; its answers end in
`<|eot_id|>`, one of three ends of text; and its chat template asks for today's date.
"""

from collections.abc import Iterable
from importlib.resources import files

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BEGIN_OF_TEXT = "<|begin_of_text|>"
END_OF_TEXT = "<|end_of_text|>"
END_OF_MESSAGE = "<|eom_id|>"
END_OF_TURN = "<|eot_id|>"
RESERVED_TOKENS = 8
SPECIAL_TOKENS = (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    END_OF_MESSAGE,
    END_OF_TURN,
    "<|python_tag|>",
    *(f"<|reserved_special_token_{number}|>" for number in range(RESERVED_TOKENS)),
)

ENGLISH_ENDINGS = r"(?i:'(?:s|t|m|d|re|ve|ll))"
WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
NUMBER = r"\p{N}{1,3}"
PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
LINE_BREAKS = r"\s*[\r\n]+"
SPACES = r"\s+(?!\S)|\s+"
SPLIT = "|".join((ENGLISH_ENDINGS, WORD, NUMBER, PUNCTUATION, LINE_BREAKS, SPACES))
"""Where a text may be cut before merges are learned: words with their leading space, up to three digits, …"""


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, model_max_length_tokens: int
) -> PreTrainedTokenizerFast:
    """Return a tokenizer learned from `texts` that can spell every Unicode text byte by byte.

    Args:
        texts: what the merges are learned from.
        vocab_size: upper bound of the vocabulary, special tokens and the 256 bytes included.
        model_max_length_tokens: written into the tokenizer's config; nothing is cut at it.
    """
    backend = Tokenizer(models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"), by_bytes]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    begin = backend.token_to_id(BEGIN_OF_TEXT)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN_OF_TEXT} $A",
        pair=f"{BEGIN_OF_TEXT} $A {BEGIN_OF_TEXT}:1 $B:1",
        special_tokens=[(BEGIN_OF_TEXT, begin)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN_OF_TEXT,
        eos_token=END_OF_TURN,
        model_max_length=model_max_length_tokens,
        clean_up_tokenization_spaces=False,
        chat_template=_chat_template(),
    )


def _chat_template() -> str:
    folder = files("psychocounsel.training") / "templates"
    return (folder / "llama3_chat.jinja").read_text(encoding="utf-8")
