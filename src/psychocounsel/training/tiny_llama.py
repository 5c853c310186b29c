"""Speech + Candidate -> Policy: make a tiny Llama 3 on this machine, so that the pipeline needs no download.

It is the real architecture in small (grouped-query attention, rotary positions scaled as in Llama 3.1,
SwiGLU, RMSNorm), its folder opens with the same `from_pretrained` as Llama-3.1-8B-Instruct, and its
`generation_config` names three ends of text and a temperature, as the real one's does.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from psychocounsel.config.models import ChatFormat
from psychocounsel.config.stages import MakeBaseModelConfig, TinyLlamaShape
from psychocounsel.domain import Candidate, Speech
from psychocounsel.errors import DataQualityError
from psychocounsel.llm.local_model import EncodedExchange, encode_exchange, pad_token_id
from psychocounsel.llm.quiet import quiet_libraries
from psychocounsel.training.saving import saving
from psychocounsel.training.tiny_tokenizer import (
    BEGIN_OF_TEXT,
    END_OF_MESSAGE,
    END_OF_TEXT,
    END_OF_TURN,
    train_tokenizer,
)
from psychocounsel.training.warm_up import WarmUpSummary, warm_up

CHAT_WORDS = "system\n\nCutting Knowledge Date: December 2023\nToday Date: user\n\n assistant\n\n"
ROPE_THETA = 500_000.0
ROPE_FACTOR = 4.0


def make_tiny_llama(
    speeches: Sequence[Speech],
    candidates: Sequence[Candidate],
    config: MakeBaseModelConfig,
    folder: Path,
    progress: Callable[[int, int], None],
) -> WarmUpSummary:
    """Learn a tokenizer and a model from the given texts alone, and save both into `folder`.

    Args:
        speeches: those of the training split.
        candidates: answers to them, good and bad alike; those to other speeches are left out.
        config: shape, warm-up and seed; equal configs give equal weights on one machine.
        folder: receives a `from_pretrained` folder in safetensors.
        progress: told the training step, and their number.

    Raises:
        DataQualityError: no candidate answers one of the speeches, or none fits into the warm-up's length.
    """
    by_id = {speech.id: speech for speech in speeches}
    answers = [answer for answer in candidates if answer.speech_id in by_id and answer.text]
    if not answers:
        raise DataQualityError(
            "no response answers a training speech", remedy="give the corpus candidates for its speeches"
        )
    texts = [speech.text for speech in speeches] + [answer.text for answer in answers]
    # Every prompt spends these words: merged, they cost a dozen tokens and not one per letter.
    texts += [CHAT_WORDS] * len(answers)
    tokenizer = train_tokenizer(texts, config.shape.vocab_size, config.shape.max_positions)
    with quiet_libraries():  # what is longer than the model's positions is left out below
        exchanges = [_encode(tokenizer, by_id[answer.speech_id], answer, config.chat) for answer in answers]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_model(config.shape, tokenizer)
        summary = warm_up(model, exchanges, config.warm_up, pad_token_id(tokenizer), progress)
    with quiet_libraries(), saving(folder):
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return summary


def build_model(shape: TinyLlamaShape, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained Llama in float32, its weights drawn from torch's global state."""
    vocabulary = tokenizer.get_vocab()
    begin = vocabulary[BEGIN_OF_TEXT]
    ends = [vocabulary[token] for token in (END_OF_TEXT, END_OF_MESSAGE, END_OF_TURN)]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.attention_heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=shape.max_positions,
        rope_parameters=_rope(shape.max_positions),
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=begin,
        eos_token_id=ends,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=begin, eos_token_id=ends, do_sample=True, temperature=0.6, top_p=0.9
    )
    return model


def _rope(max_positions: int) -> dict[str, float | str | int]:
    return {
        "rope_type": "llama3",
        "rope_theta": ROPE_THETA,
        "factor": ROPE_FACTOR,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": int(max_positions / ROPE_FACTOR),
    }


def _encode(
    tokenizer: PreTrainedTokenizerFast, speech: Speech, answer: Candidate, chat: ChatFormat
) -> EncodedExchange:
    return encode_exchange(tokenizer, speech.text, answer.text, chat)
