"""What is known of the models: how much they take, whether they think first, what they cost.

The table is `catalog.json` beside this file: one row for each model of each provider, dated (`as_of`) and sourced
(`source`). It is read once, at first use, and never changes after that; an operator's own figures make a new catalog
with `with_overrides`. Prices are integers, nano-dollars per million tokens (1 USD = 1_000_000_000 nano-dollars), so
that 8 tokens of a $0.02 model are 8 * 20_000_000 // 1_000_000 = 160 nano-dollars with no float on the way.

A price here is the standard tier's base rate. Discounts (batch, off-peak) and surcharges (prompts beyond 100k to 272k
tokens on some models, priority tiers, a longer cache lifetime) are not modelled.
"""

import datetime
import functools
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from importlib import resources
from typing import Literal, Self

import msgspec

Kind = Literal["chat", "embedding"]

NANOS_PER_USD = 1_000_000_000
# The finest price that is still a whole number, and one far above any list price that still fits 64 bits.
_MIN_USD_PER_MTOK = Decimal("1e-9")
_MAX_USD_PER_MTOK = Decimal(1_000_000)

# Providers that sell another's models under the same names: where they have no row of their own, that one's holds.
_SELLS_AS: dict[str, str] = {"azure": "openai"}

# How providers date a model: 2024-07-18 (OpenAI), 20250514 (Anthropic; after an @ on Google Cloud), 0613 and 2512.
_DATE = re.compile(r"[-@](?:\d{4}-\d{2}-\d{2}|\d{8}|\d{4})$")


class Price(msgspec.Struct, frozen=True):
    """What a million tokens cost, in whole nano-dollars. `None`: not known, or there is no such thing.

    `input` is a fresh prompt token, `cached_input` one read from the provider's prompt cache, `cache_write` one written
    to it, `output` an answer token, thinking included. Embeddings have no `output`.
    """

    input: int | None = None
    output: int | None = None
    cached_input: int | None = None
    cache_write: int | None = None


class Model(msgspec.Struct, frozen=True):
    """One model as one provider sells it.

    `context_tokens` is the longest prompt it takes, `max_output_tokens` the longest answer (both in the provider's own
    tokens; `None`: not known). `reasoning`: it can think before the first token, so it may be silent for long. `tools`,
    `vision` (takes images) and `json_schema` (keeps to a schema): `None` means not known, not no.
    """

    id: str
    provider: str
    kind: Kind
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    reasoning: bool = False
    tools: bool | None = None
    vision: bool | None = None
    json_schema: bool | None = None
    price: Price | None = None


class Override(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An operator's own figures for one model, as they stand in the config; what is left out stays as it was.

    Prices are US dollars per million tokens, as number or string ("0.0375"), read as the decimal that is written.
    An input price alone forgets the table's cached prices: they belonged to the list price, and a self-hosted model at
    0 must not bill cached tokens. `kind` matters only for a model that the table lacks (chat unless said).
    """

    input_usd_per_mtok: str | int | float | None = None
    output_usd_per_mtok: str | int | float | None = None
    cached_input_usd_per_mtok: str | int | float | None = None
    cache_write_usd_per_mtok: str | int | float | None = None
    context_tokens: int | None = None
    max_output_tokens: int | None = None
    reasoning: bool | None = None
    kind: Kind | None = None


class _Table(msgspec.Struct, frozen=True):
    """`catalog.json`."""

    as_of: datetime.date
    source: tuple[str, ...]
    models: tuple[Model, ...]


# How long a model may be silent before it begins, where a route does not say: the first token of a stream, the head of
# a whole answer (DESIGN section 5). A model that thinks first takes minutes.
TTFT_MS, PLAIN_MS = 15_000, 120_000
REASONING_TTFT_MS, REASONING_PLAIN_MS = 120_000, 600_000


def patience_ms(model: Model | None, stream: bool) -> int:
    """Milliseconds a model may be silent before it begins; `None` is a model nothing is known of."""
    if model is not None and model.reasoning:
        return REASONING_TTFT_MS if stream else REASONING_PLAIN_MS
    return TTFT_MS if stream else PLAIN_MS


class Catalog:
    """An unchanging table of models. `as_of` is the day it was compiled, `source` says where its figures come from."""

    __slots__ = ("_apart", "_by_name", "_by_seller", "_remembered", "_rows", "as_of", "source")

    def __init__(
        self,
        models: Iterable[Model],
        as_of: datetime.date,
        source: tuple[str, ...] = (),
        apart: Iterable[Model] = (),
    ) -> None:
        """A catalog of these models. Those kept `apart` are found only by who asks at their own provider.

        Of two rows with the same provider and id the later counts.
        """
        self.as_of = as_of
        self.source = source
        self._rows = {(model.provider, model.id): model for model in models}
        self._apart = {(model.provider, model.id): model for model in apart}
        self._by_seller = self._rows | self._apart
        # Bounded, because on some routes clients make up the names.
        self._remembered = functools.lru_cache(maxsize=1024)(self._look_up)
        self._by_name: dict[str, Model] = {}
        for model in self._rows.values():
            known = self._by_name.get(model.id)
            if known is None or _dearness(model) > _dearness(known):
                self._by_name[model.id] = model

    @classmethod
    def builtin(cls) -> "Catalog":
        """The packaged table: one object for the process, read and decoded at the first call (3 ms)."""
        return _builtin()

    @property
    def models(self) -> tuple[Model, ...]:
        """Every row: the table's by provider and id, then the operator's own."""
        return tuple(self._by_seller.values())

    def find(self, model: str, provider: str = "") -> Model | None:
        """What is known of `model`, or `None`. O(1): at most 16 dictionary look-ups.

        Tried in turn: the name as it is; without a `vendor/` prefix ("openai/gpt-4o-mini"); and both again without the
        date at the end ("gpt-4o-mini-2024-07-18"). Each of them first at `provider`, then at the one whose models that
        one sells by the same names, at the one the prefix names, and last at anybody's: `provider` says where to look
        first, not only (a target of kind openai may be any compatible server). Where several sell that id and nothing
        tells them apart, the dearest is meant, so that a budget errs on the safe side.
        """
        return self._remembered(model, provider)

    def _look_up(self, model: str, provider: str) -> Model | None:
        found = self._named(model, provider)
        if found is None:
            undated = _DATE.sub("", model)
            if undated != model:
                found = self._named(undated, provider)
        return found

    def with_overrides(self, overrides: Mapping[str, Override]) -> Self:
        """This catalog with an operator's figures laid over it; the old one stays as it was. O(models) an override.

        A key that is an id of the table changes that row (at every provider with that id), and no other: not its dated
        names. `provider/id` holds at that provider alone, "provider" being any name later given to `find`. Any other
        key adds a model. A new row starts from what `find` knows of its key, if anything.

        Raises `ValueError` naming the model and the field: a price that is not a number, negative, not finite, above a
        million dollars or with more than nine decimals; a size that is not positive.
        """
        rows, apart = dict(self._rows), dict(self._apart)
        for key, override in overrides.items():
            changed = [model for model in self._rows.values() if model.id == key]
            for model in changed:
                rows[model.provider, key] = _laid_over(model, key, override)
            if changed:
                continue
            known = self.find(key)
            provider, slash, name = key.partition("/")
            if not slash:
                provider, name = known.provider if known else "", key
            model = msgspec.structs.replace(known or Model("", "", "chat"), id=name, provider=provider)
            shelf = apart if slash and (provider, name) not in rows else rows
            shelf[provider, name] = _laid_over(model, key, override)
        return type(self)(rows.values(), self.as_of, self.source, apart.values())

    def _named(self, model: str, provider: str) -> Model | None:
        found = self._sold(model, provider)
        if found is None:
            vendor, slash, rest = model.partition("/")
            if slash:
                found = self._sold(rest, provider, vendor)
        return found

    def _sold(self, name: str, *sellers: str) -> Model | None:
        for seller in sellers:
            found = self._by_seller.get((seller, name))
            if found is None and seller in _SELLS_AS:
                found = self._by_seller.get((_SELLS_AS[seller], name))
            if found is not None:
                return found
        return self._by_name.get(name)


@functools.cache
def _builtin() -> Catalog:
    raw = resources.files("turnout").joinpath("catalog.json").read_bytes()
    table = msgspec.json.decode(raw, type=_Table)
    return Catalog(table.models, table.as_of, table.source)


def _dearness(model: Model) -> int:
    """How dear a model is, for comparing sellers of the same id; -1 where no price is known."""
    price = model.price
    return -1 if price is None else (price.input or 0) + (price.output or 0)


def _laid_over(model: Model, key: str, override: Override) -> Model:
    """`model` with the fields that `override` gives. Raises `ValueError` as `Catalog.with_overrides` says."""
    return Model(
        id=model.id,
        provider=model.provider,
        kind=override.kind or model.kind,
        context_tokens=_size(key, "context_tokens", override.context_tokens, model.context_tokens),
        max_output_tokens=_size(key, "max_output_tokens", override.max_output_tokens, model.max_output_tokens),
        reasoning=model.reasoning if override.reasoning is None else override.reasoning,
        tools=model.tools,
        vision=model.vision,
        json_schema=model.json_schema,
        price=_price(key, override, model.price),
    )


def _price(key: str, override: Override, listed: Price | None) -> Price | None:
    given: dict[str, int | None] = {
        "input": _nanos(key, "input_usd_per_mtok", override.input_usd_per_mtok),
        "output": _nanos(key, "output_usd_per_mtok", override.output_usd_per_mtok),
        "cached_input": _nanos(key, "cached_input_usd_per_mtok", override.cached_input_usd_per_mtok),
        "cache_write": _nanos(key, "cache_write_usd_per_mtok", override.cache_write_usd_per_mtok),
    }
    given = {name: nanos for name, nanos in given.items() if nanos is not None}
    if not given:
        return listed
    if "input" in given:
        listed = msgspec.structs.replace(listed or Price(), cached_input=None, cache_write=None)
    return msgspec.structs.replace(listed or Price(), **given)


def _nanos(key: str, field: str, usd: str | int | float | None) -> int | None:
    """Dollars per million tokens as exact nano-dollars per million tokens."""
    if usd is None:
        return None
    # str() first: a float means the decimal it was written as. A bool is an int to Python; as a price it is a mistake.
    try:
        value = Decimal("NaN") if isinstance(usd, bool) else Decimal(str(usd))
    except InvalidOperation:
        value = Decimal("NaN")
    if value.is_zero():
        return 0
    # The range is checked before any power of ten is made: "1e999999" must not become a number of a million digits.
    # Then by fractions, since Decimal arithmetic rounds to 28 digits and would hide what does not fit.
    if value.is_finite() and _MIN_USD_PER_MTOK <= value <= _MAX_USD_PER_MTOK:
        nanos = Fraction(value) * NANOS_PER_USD
        if nanos.denominator == 1:
            return nanos.numerator
    raise ValueError(
        f"model {key!r}: {field} must be US dollars per million tokens, from 0 to {_MAX_USD_PER_MTOK}"
        f" with at most 9 decimals, got {usd!r}"
    )


def _size(key: str, field: str, tokens: int | None, known: int | None) -> int | None:
    if tokens is None:
        return known
    if tokens <= 0:
        raise ValueError(f"model {key!r}: {field} must be a positive number of tokens, got {tokens}")
    return tokens
