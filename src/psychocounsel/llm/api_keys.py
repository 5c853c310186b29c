"""EndpointConfig -> its key: read from the environment when it is needed, and kept nowhere."""

import os

from psychocounsel.config.models import EndpointConfig
from psychocounsel.errors import ConfigError
from psychocounsel.llm.addresses import is_on_this_machine, resolved_base_url

_DUMMY_KEY = "no-key-needed"


def api_key(endpoint: EndpointConfig) -> str:
    """Return the key of an endpoint; a server on this machine needs none.

    Raises:
        ConfigError: the variable holds none, or something that cannot be one.
    """
    variable, base_url = endpoint.api_key_env, resolved_base_url(endpoint)
    key = os.environ.get(variable, "").strip()
    if not key and is_on_this_machine(base_url):
        return _DUMMY_KEY
    if not key:
        raise ConfigError(
            f"the environment variable {variable} holds no API key",
            where="endpoint.api_key_env",
            remedy=f"export {variable}=..., or name the variable that holds the key for {base_url}",
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            f"the API key in {variable} has characters that no key has (a space, a line break)",
            where="endpoint.api_key_env",
            remedy="copy the key again",
        )
    return key
