"""Model libraries -> silence: their progress bars and expected warnings stay off the user's terminal."""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Quiet transformers and trl inside the block; everything is as before after it."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    trl_log = logging.getLogger("trl")
    trl_level = trl_log.level
    trl_log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # trl 1.16 asks transformers 5.23 by an old name, at every step.
            warnings.filterwarnings("ignore", r"`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings(
                "ignore", r"`gradient_checkpointing_(en|dis)able` is deprecated", FutureWarning
            )
            yield
    finally:
        trl_log.setLevel(trl_level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
