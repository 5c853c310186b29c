"""Weights while they are trained (fp32, bfloat16 or 4-bit) and as they are saved: fp32, adapters merged."""

import copy
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig
from transformers.utils.import_utils import is_torch_bf16_gpu_available

from psychocounsel.config.schema import OptimisationConfig
from psychocounsel.errors import ConfigError
from psychocounsel.training.optimizers import exact_values, keep_remainder

LIBRARY_OPTIMIZERS = {
    "adamw": "adamw_torch_fused" if torch.cuda.is_available() else "adamw_torch",  # fused needs no copy of the weights
    "adamw_8bit": "adamw_8bit",
    "paged": "paged_adamw_32bit",
}
"""Our names of optimizers that transformers makes, and its own names."""
_HEADS = ["lm_head", "score"]


def uses_autocast(optimisation: OptimisationConfig) -> bool:
    """Return whether forward passes compute in bfloat16: on a device made for it, or where weights need it."""
    return optimisation.precision == "bf16" and (is_torch_bf16_gpu_available() or optimisation.weights != "fp32")


def require_libraries(optimisation: OptimisationConfig) -> None:
    """Raise ConfigError if weights or optimizer need bitsandbytes, and it is not installed."""
    for key, value, is_needed in (
        ("weights", optimisation.weights, optimisation.weights == "nf4"),
        ("optimizer", optimisation.optimizer, optimisation.optimizer in ("adamw_8bit", "paged")),
    ):
        if is_needed and importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                f"{key}: {value} needs bitsandbytes, which is not installed",
                where=f"optimisation.{key}",
                remedy="pip install 'psychocounsel[gpu]'",
            )


def loading_options(optimisation: OptimisationConfig) -> dict[str, Any]:
    """Return the options of `from_pretrained`.

    4-bit weights are NF4 with quantized constants (Dettmers et al. 2023), on the device of this process. Weights that
    are trained in bfloat16 are loaded in fp32 and split by `prepare_weights`.

    Raises:
        ConfigError: bitsandbytes is needed and not installed.
    """
    require_libraries(optimisation)
    if optimisation.weights == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=_HEADS,  # heads are projected, or trained, as they are
        )
        placed = {"device_map": {"": _own_device()}} if torch.cuda.is_available() else {}
        return {"dtype": torch.bfloat16, "quantization_config": quantization, **placed}
    return {"dtype": torch.bfloat16 if optimisation.weights == "bf16" and optimisation.lora else torch.float32}


def _own_device() -> torch.device:
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def prepare_weights(model: Any, optimisation: OptimisationConfig) -> None:
    """Make bfloat16 weights of those that `adamw_bf16_sr` trains; what they lose stays with them."""
    if optimisation.optimizer == "adamw_bf16_sr":
        for parameter in model.parameters():
            keep_remainder(parameter)


def keep_adapters_exact(model: Any) -> None:
    """Make the adapters on a quantized model fp32 again: trl makes them bfloat16, which swallows small updates."""
    if isinstance(model, PeftModel):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter of a model as a PEFT folder that names its base: on the Hub, or by the name of its folder."""
    base = model.get_base_model().name_or_path
    config = copy.copy(model.peft_config["default"])
    config.base_model_name_or_path = Path(base).name if Path(base).is_dir() else base
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set: its order changes from process to process
    config.save_pretrained(str(folder))
    save_file(get_peft_model_state_dict(model, save_embedding_layers=False), folder / SAFETENSORS_WEIGHTS_NAME)


def load_adapter(model: Any, folder: Path) -> None:
    """Give the adapter of a model the values that `save_adapter` has written, in fp32."""
    keep_adapters_exact(model)
    set_peft_model_state_dict(model, load_file(folder / SAFETENSORS_WEIGHTS_NAME))


def plain_model(model: Any, optimizer: Any) -> Any:
    """Return a trained model in fp32 with its adapters merged, as it was while it was trained.

    A merge into bfloat16 or 4-bit weights would round the adapters away, so it is done in fp32, and in the memory of
    the host: the weights of the device need not fit there twice.
    """
    if isinstance(model, PeftModel):
        if getattr(model, "is_loaded_in_4bit", False):
            adapters = get_peft_model_state_dict(model, save_embedding_layers=False)
            config = model.peft_config["default"]
            model = get_peft_model(model.unload().dequantize(), config)
            set_peft_model_state_dict(model, adapters)
        if any(each.dtype != torch.float32 for each in model.parameters()):
            model = model.to("cpu", torch.float32)
        return model.merge_and_unload()
    for parameter in model.parameters():
        parameter.grad = None
        parameter.data = exact_values(parameter, optimizer)
        if optimizer is not None:
            optimizer.state.pop(parameter, None)  # makes room: fp32 weights take more than bfloat16 ones
    return model
