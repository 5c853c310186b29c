"""The environment of model libraries: their output, loading, reproducible arithmetic on a CPU, and a full disk."""

import ctypes
import gc
import logging
import os
import platform
import shutil
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig
from transformers.utils import logging as transformers_logging

from psychocounsel.errors import VERBOSE, ConfigError, IncompleteError
from psychocounsel.store.files import FULL_DISK, write_faults
from psychocounsel.types import Policy


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Keep progress bars and expected warnings of transformers and trl off the terminal within the block.

    With `--verbose` they stay.
    """
    if os.environ.get(VERBOSE):
        yield
        return
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    trl_log = logging.getLogger("trl")
    trl_level = trl_log.level
    trl_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # trl 1.16 uses old names of transformers 5.23 at every step.
            warnings.filterwarnings("ignore", r"`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", r"`gradient_checkpointing_(en|dis)able` is deprecated", FutureWarning)
            yield
    finally:
        trl_log.setLevel(trl_level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def free_memory() -> None:
    """Free the models that nothing uses any more; on an accelerator, other processes can then have their memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_pretrained(auto_class: Any, policy: Policy, **options: Any) -> Any:
    """Return what `auto_class.from_pretrained` loads for `policy`.

    Raises:
        ConfigError: the folder or Hub id holds no such model or tokenizer.
    """
    try:
        with quiet_libraries():  # they warn about a reward model's head, which its base lacks
            return auto_class.from_pretrained(policy.location, revision=policy.revision or "main", **options)
    except (OSError, ValueError) as error:
        what = "tokenizer" if "Tokenizer" in auto_class.__name__ else "model"
        remedy = f"check the folder or Hub id ({shorten(str(error), 300)})"
        raise ConfigError(f"no {what} can be loaded", where=policy.location, remedy=remedy) from error


def trainable_config(policy: Policy, *, with_head: bool = False) -> Any:
    """Return the config of a model that can become a policy, or `with_head` a reward model.

    Raises:
        ConfigError: the folder or Hub id holds no model, or transformers has no class for that and its type.
    """
    config = load_pretrained(AutoConfig, policy)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(
            f"transformers opens no model of the type {config.model_type} as a causal language model",
            where=policy.location,
            remedy="use another model; of some that read images, too, there are weights for text alone",
        )
    if with_head and type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ConfigError(
            f"transformers has no reward head for models of the type {config.model_type}",
            where=policy.location,
            remedy="train the reward model from another type, such as Llama, Qwen or Mistral; the policy may stay",
        )
    return config


def on_this_machine(policy: Policy, *files: str) -> Policy | None:
    """Return where a model is without asking the Hub; None if one of `files` may be on the Hub alone."""
    if Path(policy.location).is_dir():
        return policy
    found = {name: try_to_load_from_cache(policy.location, name, revision=policy.revision) for name in files}
    there = [each for each in found.values() if isinstance(each, str)]
    unknown = {name for name, each in found.items() if each is None}
    if there and unknown:
        # Not in every version that transformers takes.
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        try:
            listed = get_cached_repo_tree(policy.location, revision=policy.revision)
        except CachedRepoTreeNotFoundError:
            return None
        unknown &= {each.path for each in listed}
    return Policy(str(Path(there[0]).parent)) if there and not unknown else None


def default_device() -> str:
    """Return where models compute that are not trained: CUDA if there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def inference_dtype() -> torch.dtype:
    """Return in what they compute: bfloat16 on a CUDA device, float32 elsewhere."""
    return torch.bfloat16 if default_device() == "cuda" else torch.float32


_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_NEVER_BYTES = 2**31 - 1


def prepare_cpu() -> None:
    """Make training on a CPU reproducible, and keep freed memory for reuse; no change with an accelerator."""
    if torch.accelerator.is_available():
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    # By default this mode writes every new tensor once more.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyrefly: ignore[missing-attribute]
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER_BYTES)


_FULL_DISK_MESSAGES = ("No space left", "os error 28", "quota exceeded", "os error 122")
_FULL_DISK_BYTES = 1 << 22


@contextmanager
def saving(folder: Path) -> Generator[None]:
    """Raise IncompleteError where weights or checkpoints cannot be written because the disk is full.

    torch's error names no cause, so the free space of the disk is checked too. Other errors of the libraries pass.
    """
    try:
        with write_faults(folder, only=FULL_DISK):
            yield
    except (SafetensorError, RuntimeError) as fault:
        is_named = any(each in str(fault) for each in _FULL_DISK_MESSAGES)
        if not is_named and shutil.disk_usage(folder).free >= _FULL_DISK_BYTES:
            raise
        raise IncompleteError(
            f"could not write: {str(fault).splitlines()[0]}",
            where=str(folder),
            remedy="free some space, then run the same command again",
        ) from fault
