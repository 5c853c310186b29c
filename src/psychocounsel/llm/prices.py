"""Model -> Price: what a million tokens cost, from a maintained table or from the config.

The table lies in the package `genai-prices` and is as old as that package; nothing is fetched.
"""

from decimal import Decimal
from typing import NamedTuple

from psychocounsel.config.models import EndpointConfig, PriceConfig
from psychocounsel.llm.addresses import is_on_this_machine, resolved_base_url

MILLION = Decimal(1_000_000)
BATCH_SHARE = Decimal("0.5")
"""Of the live price: what the provider's batch endpoint charges."""


class Tokens(NamedTuple):
    """Tokens of one or many calls; `cached` are those of the prompt that came from a prefix cache."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0

    def plus(self, other: "Tokens") -> "Tokens":
        """Return the sum."""
        return Tokens(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def less(self, other: "Tokens") -> "Tokens":
        """Return the difference."""
        return Tokens(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


class Price(NamedTuple):
    """US dollars per million tokens, and where the figures stand."""

    prompt: Decimal
    cached: Decimal
    completion: Decimal
    source: str

    def cost(self, tokens: Tokens) -> Decimal:
        """Return what the tokens cost, in US dollars; no more of a prompt is cached than there is of it."""
        cached = min(tokens.cached, tokens.prompt)
        fresh = (tokens.prompt - cached) * self.prompt
        return (fresh + cached * self.cached + tokens.completion * self.completion) / MILLION

    def batch_cost(self, tokens: Tokens) -> Decimal:
        """Return what the tokens cost in a batch, in US dollars; a cached prefix is no cheaper."""
        return self.cost(tokens._replace(cached=0)) * BATCH_SHARE


def price_of(endpoint: EndpointConfig) -> Price | None:
    """Return the price of an endpoint's model; None where nobody told it.

    A price in the config wins. A server on this machine costs nothing unless the config says so.
    """
    if endpoint.price is not None:
        return _configured(endpoint.price)
    base_url = resolved_base_url(endpoint)
    if is_on_this_machine(base_url):
        return Price(Decimal(0), Decimal(0), Decimal(0), "a server on this machine")
    return _from_table(endpoint.model, base_url)


def _configured(price: PriceConfig) -> Price:
    prompt = Decimal(str(price.prompt))
    cached = prompt if price.cached_prompt is None else Decimal(str(price.cached_prompt))
    return Price(prompt, cached, Decimal(str(price.completion)), "the config")


def _from_table(model: str, base_url: str) -> Price | None:
    from genai_prices import Usage, calc_price  # a quarter of a second: only where a price is asked for

    # Some prices rise with the length of a call; ours are of this order.
    amount, calls = 1_000, MILLION / 1_000
    try:
        fresh, cached = (
            calc_price(
                Usage(input_tokens=amount, cache_read_tokens=read, output_tokens=amount),
                model_ref=model,
                provider_api_url=base_url,
            )
            for read in (0, amount)
        )
    except LookupError:
        return None
    if fresh.input_price is None or cached.input_price is None or fresh.output_price is None:
        return None
    source = f"genai-prices, {fresh.provider.id}/{fresh.model.id}"
    return Price(fresh.input_price * calls, cached.input_price * calls, fresh.output_price * calls, source)
