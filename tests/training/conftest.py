"""A tiny Llama 3 that the tests of training share, and the texts it was trained on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from preference_runs import output_in
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from miniature import SHAPE
from psychocounsel.config.schema import BaseModelConfig
from psychocounsel.training.generate import AnswerGenerator
from psychocounsel.training.tiny_llama import make_tiny_llama
from psychocounsel.training.tokenize import load_tokenizer
from psychocounsel.types import Candidate, Policy, Speech

SPEECHES = (
    Speech("(Looks away) My sister stopped calling after the funeral, and I keep rereading her last message."),
    Speech("I got the promotion. Since then I lie awake at four, sure that they will find me out by Friday."),
    Speech("My son says I never listen. Perhaps he is right; at dinner I only hear my own day going round."),
    Speech("I stopped drinking nine weeks ago and nobody noticed. I am proud, and also rather flat."),
)
REPLIES = (
    "Nine weeks, and nobody said a word. What has it been like to carry that on your own?",
    "You should simply make a list and get on with it.",
    "That sounds lonely. What do you wish she would write to you?",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Compute on one thread: models this small lose more by waiting for each other than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def speeches() -> tuple[Speech, ...]:
    return SPEECHES


@pytest.fixture(scope="session")
def candidates() -> tuple[Candidate, ...]:
    return tuple(
        Candidate(speech.id, f"author-{number}", text) for speech in SPEECHES for number, text in enumerate(REPLIES)
    )


@pytest.fixture(scope="session")
def tiny_config() -> BaseModelConfig:
    source = {"path": "x", "columns": {"text": "text"}, "licence": "CC BY 4.0", "data_class": "public"}
    settings = {
        "name": "tiny",
        "seed": 7,
        "corpus": {"name": "tiny", "speeches": (source,)},
        "shape": {**SHAPE, "layers": 2, "max_positions": 512},
        "sft": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "max_length_tokens": 512},
    }
    return BaseModelConfig.model_validate(settings)


@pytest.fixture(scope="session")
def tiny_model_folder(
    tmp_path_factory: pytest.TempPathFactory,
    speeches: tuple[Speech, ...],
    candidates: tuple[Candidate, ...],
    tiny_config: BaseModelConfig,
) -> Path:
    """Return a `from_pretrained` folder: two layers, 32 wide, about 400 tokens, one epoch; do not write into it."""
    transformers_logging.disable_progress_bar()
    output = output_in(tmp_path_factory.mktemp("tiny-llama"))
    make_tiny_llama(speeches, candidates, tiny_config, output)
    return output.folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(Policy(str(tiny_model_folder)))


@pytest.fixture(scope="session")
def tiny_generator(tiny_model_folder: Path) -> AnswerGenerator:
    return AnswerGenerator.load(Policy(str(tiny_model_folder)))
