import datetime
import json
from importlib import resources

import msgspec
import pytest

from turnout.catalog import Catalog, Model, Override, Price

BUILTIN = Catalog.builtin()
AS_OF = datetime.date(2026, 11, 24)


def small(*models: Model) -> Catalog:
    return Catalog(models, AS_OF)


def overridden(**fields: object) -> Price:
    model = small().with_overrides({"m": msgspec.convert(fields, Override)}).find("m")
    assert model is not None and model.price is not None
    return model.price


# the table


@pytest.mark.parametrize("model", BUILTIN.models, ids=lambda model: f"{model.provider}/{model.id}")
def test_every_row_is_sane(model: Model) -> None:
    assert model.id and model.id == model.id.strip()
    assert model.provider == model.provider.lower().strip() != ""
    assert model.kind in ("chat", "embedding")
    assert model.context_tokens is not None and model.context_tokens > 0
    assert model.max_output_tokens is None or model.max_output_tokens > 0
    price = model.price
    assert price is not None and price.input is not None
    assert all(nanos is None or nanos > 0 for nanos in msgspec.structs.astuple(price))
    assert price.cached_input is None or price.cached_input <= price.input
    assert price.cache_write is None or price.cache_write >= price.input
    if model.kind == "chat":
        assert price.output is not None and price.output >= price.input
    else:
        assert price.output is None and model.max_output_tokens is None and not model.reasoning


def test_a_provider_lists_an_id_once() -> None:
    table = json.loads(resources.files("turnout").joinpath("catalog.json").read_bytes())
    keys = [(row["provider"], row["id"]) for row in table["models"]]
    assert len(set(keys)) == len(keys) == len(BUILTIN.models)


def test_the_file_has_one_row_a_line_sorted_by_provider_and_id() -> None:
    lines = resources.files("turnout").joinpath("catalog.json").read_text().splitlines()
    rows = [json.loads(line.rstrip(",")) for line in lines if line.startswith('{"id"')]
    assert len(rows) == len(BUILTIN.models)
    keys = [(row["provider"], row["id"]) for row in rows]
    assert keys == sorted(keys)


def test_every_row_names_every_field() -> None:
    # A misspelt field would decode as its default: unknown price, not reasoning.
    table = json.loads(resources.files("turnout").joinpath("catalog.json").read_bytes())
    for row in table["models"]:
        assert set(row) == set(Model.__struct_fields__), row["id"]
        assert set(row["price"]) == set(Price.__struct_fields__), row["id"]


def test_the_table_says_when_and_whence() -> None:
    assert BUILTIN.as_of >= AS_OF
    assert any("litellm" in line for line in BUILTIN.source)


def test_builtin_is_read_once() -> None:
    assert Catalog.builtin() is BUILTIN


def test_every_row_is_found_by_its_own_name() -> None:
    for model in BUILTIN.models:
        assert BUILTIN.find(model.id, model.provider) is model


def test_a_date_taken_off_never_changes_the_price() -> None:
    # What a dated name outside the table would be billed: the row without its date, at the same provider.
    for model in BUILTIN.models:
        undated = small(*(m for m in BUILTIN.models if m.id != model.id)).find(model.id, model.provider)
        if undated is not None and model.id != "gpt-4o-2024-05-13":  # launched dearer than today's gpt-4o
            assert undated.provider != model.provider or undated.price == model.price, (model.id, undated.id)


def test_known_prices() -> None:
    mini = BUILTIN.find("gpt-4o-mini")
    assert mini is not None
    assert mini.price == Price(input=150_000_000, output=600_000_000, cached_input=75_000_000)
    opus = BUILTIN.find("claude-opus-5")
    assert opus is not None
    assert opus.price == Price(5_000_000_000, 25_000_000_000, cached_input=500_000_000, cache_write=6_250_000_000)


def test_eight_tokens_of_a_small_embedding_cost_160_nano_dollars() -> None:
    model = BUILTIN.find("text-embedding-3-small")
    assert model is not None and model.price is not None and model.price.input is not None
    assert divmod(8 * model.price.input, 1_000_000) == (160, 0)


@pytest.mark.parametrize(
    ("name", "thinks"),
    [("gpt-5", True), ("o3", True), ("claude-opus-5", True), ("gpt-4o-mini", False), ("gpt-4.1", False)],
)
def test_reasoning_models_are_marked(name: str, thinks: bool) -> None:
    model = BUILTIN.find(name)
    assert model is not None and model.reasoning is thinks


# finding


@pytest.mark.parametrize(
    ("name", "provider", "row"),
    [
        ("gpt-4o-mini", "", ("openai", "gpt-4o-mini")),
        ("gpt-4o-mini-2024-07-18", "", ("openai", "gpt-4o-mini-2024-07-18")),
        ("openai/gpt-4o-mini", "", ("openai", "gpt-4o-mini")),
        ("openai/gpt-4o-mini", "azure", ("openai", "gpt-4o-mini")),
        ("gpt-4o-mini", "azure", ("openai", "gpt-4o-mini")),
        ("gpt-4.1-nano", "azure", ("azure", "gpt-4.1-nano")),
        ("gpt-4o-mini", "some-server", ("openai", "gpt-4o-mini")),
        ("gpt-4o-mini-2031-01-02", "", ("openai", "gpt-4o-mini")),
        ("gpt-4o-mini-20310102", "", ("openai", "gpt-4o-mini")),
        ("gpt-4o-mini-0613", "", ("openai", "gpt-4o-mini")),
        ("claude-opus-5@20310102", "", ("anthropic", "claude-opus-5")),
        ("openai/gpt-4o-mini-2031-01-02", "azure", ("openai", "gpt-4o-mini")),
        ("models/gemini-2.5-flash", "gemini", ("gemini", "gemini-2.5-flash")),
        ("openai/gpt-oss-120b", "groq", ("groq", "openai/gpt-oss-120b")),
        ("openai/gpt-oss-120b", "together", ("together", "openai/gpt-oss-120b")),
        ("groq/openai/gpt-oss-120b", "", ("groq", "openai/gpt-oss-120b")),
    ],
)
def test_find(name: str, provider: str, row: tuple[str, str]) -> None:
    found = BUILTIN.find(name, provider)
    assert found is not None and (found.provider, found.id) == row


@pytest.mark.parametrize(
    "name",
    ["", "/", "-0613", "gpt-9-omega", "openai/gpt-9-omega", "gpt-4o-mini-", "gpt-4o-mini-24", "ft:gpt-4o-mini:a::x1"],
)
@pytest.mark.parametrize("provider", ["", "openai", "azure", "nobody"])
def test_an_unknown_model_is_none(name: str, provider: str) -> None:
    assert BUILTIN.find(name, provider) is None


def test_the_exact_name_wins_over_the_name_without_its_date() -> None:
    launch, now = Model("m-2024-05-13", "p", "chat", price=Price(5)), Model("m", "p", "chat", price=Price(2))
    catalog = small(launch, now)
    assert catalog.find("m-2024-05-13") is launch
    assert catalog.find("m-2024-05-14") is now


def test_where_nothing_tells_the_sellers_apart_the_dearest_is_meant() -> None:
    cheap, dear, unknown = (
        Model("m", "a", "chat", price=Price(1, 2)),
        Model("m", "b", "chat", price=Price(2, 2)),
        Model("m", "c", "chat"),
    )
    for order in ((cheap, dear, unknown), (unknown, dear, cheap)):
        assert small(*order).find("m") is dear
        assert small(*order).find("m", "a") is cheap


# overrides


@pytest.mark.parametrize(
    ("usd", "nanos"),
    [
        (0.0375, 37_500_000),
        ("0.0375", 37_500_000),
        (0.15, 150_000_000),
        (3, 3_000_000_000),
        ("15.00", 15_000_000_000),
        (1e-05, 10_000),
        ("1e-9", 1),
        ("0.15000000000000000000000000000000000000000000", 150_000_000),
        (1_000_000, 10**15),
        (0, 0),
        ("0e999999999", 0),
    ],
)
def test_a_price_is_the_decimal_as_written(usd: str | int | float, nanos: int) -> None:
    price = overridden(input_usd_per_mtok=usd)
    assert price.input == nanos and type(price.input) is int


@pytest.mark.parametrize(
    "field", ["input_usd_per_mtok", "output_usd_per_mtok", "cached_input_usd_per_mtok", "cache_write_usd_per_mtok"]
)
@pytest.mark.parametrize(
    "usd",
    [
        -1, "-0.01", float("nan"), "NaN", "sNaN", float("inf"), "-Infinity", "", "$1", "free", True,
        1_000_001, "1e999999999", "1e-999999999", "1e-10", "0.0000000001", 0.1 + 0.2,
        "1.00000000000000000000000000000000000001",
    ],
)  # fmt: skip
def test_what_is_no_price_is_refused_by_field_name(field: str, usd: str | float) -> None:
    with pytest.raises(ValueError, match=f"'m-1': {field} must be"):
        BUILTIN.with_overrides({"m-1": Override(**{field: usd})})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["context_tokens", "max_output_tokens"])
@pytest.mark.parametrize("tokens", [0, -1])
def test_what_is_no_size_is_refused_by_field_name(field: str, tokens: int) -> None:
    with pytest.raises(ValueError, match=f"'m': {field} must be"):
        BUILTIN.with_overrides({"m": Override(**{field: tokens})})  # type: ignore[arg-type]


def test_an_override_forbids_unknown_fields() -> None:
    with pytest.raises(msgspec.ValidationError, match="input_usd"):
        msgspec.convert({"input_usd": 1}, Override)


def test_an_override_changes_what_it_names_and_nothing_else() -> None:
    before = BUILTIN.find("gpt-4o-mini")
    dated = BUILTIN.find("gpt-4o-mini-2024-07-18")
    catalog = BUILTIN.with_overrides({"gpt-4o-mini": Override(output_usd_per_mtok="0.5", reasoning=True)})
    after = catalog.find("gpt-4o-mini")
    assert before is not None and before.price is not None
    price = msgspec.structs.replace(before.price, output=500_000_000)
    assert after == msgspec.structs.replace(before, price=price, reasoning=True)
    assert catalog.find("gpt-4o-mini", "azure") == after
    assert catalog.find("gpt-4o-mini-2024-07-18") is dated
    assert BUILTIN.find("gpt-4o-mini") is before
    assert (catalog.as_of, catalog.source) == (BUILTIN.as_of, BUILTIN.source)
    assert len(catalog.models) == len(BUILTIN.models)


def test_sizes_can_be_overridden() -> None:
    catalog = BUILTIN.with_overrides({"gpt-4o": Override(context_tokens=8_000, max_output_tokens=1_000)})
    after, before = catalog.find("gpt-4o"), BUILTIN.find("gpt-4o")
    assert after is not None and before is not None
    assert (after.context_tokens, after.max_output_tokens, after.price) == (8_000, 1_000, before.price)


def test_an_input_price_forgets_the_listed_cache_prices() -> None:
    free = Override(input_usd_per_mtok=0, output_usd_per_mtok=0)
    model = BUILTIN.with_overrides({"claude-opus-5": free}).find("claude-opus-5")
    assert model is not None and model.price == Price(input=0, output=0)


def test_an_override_may_give_every_price() -> None:
    price = overridden(
        input_usd_per_mtok=1, output_usd_per_mtok="2", cached_input_usd_per_mtok=0.1, cache_write_usd_per_mtok=1.25
    )
    assert price == Price(1_000_000_000, 2_000_000_000, 100_000_000, 1_250_000_000)


def test_an_unknown_id_adds_a_model() -> None:
    catalog = BUILTIN.with_overrides(
        {
            "house-chat": Override(input_usd_per_mtok=0.5, context_tokens=32_768),
            "house-embed": Override(kind="embedding"),
        }
    )
    assert catalog.find("house-chat") == Model("house-chat", "", "chat", 32_768, price=Price(500_000_000))
    assert catalog.find("house-chat", "vllm") == catalog.find("house-chat")
    assert catalog.find("house-embed") == Model("house-embed", "", "embedding")


def test_a_dated_name_outside_the_table_starts_from_the_row_it_finds() -> None:
    catalog = BUILTIN.with_overrides({"gpt-4o-mini-2031-01-02": Override(output_usd_per_mtok=1)})
    new, old = catalog.find("gpt-4o-mini-2031-01-02", "openai"), BUILTIN.find("gpt-4o-mini")
    assert new is not None and new.price is not None and old is not None and old.price is not None
    assert (new.provider, new.context_tokens, new.price.input) == ("openai", old.context_tokens, old.price.input)
    assert new.price.output == 1_000_000_000
    assert catalog.find("gpt-4o-mini") is old


def test_a_qualified_override_holds_at_that_provider_alone() -> None:
    catalog = BUILTIN.with_overrides(
        {
            "azure/gpt-4o": Override(input_usd_per_mtok=99),
            "groq/openai/gpt-oss-120b": Override(input_usd_per_mtok=98),
            "openai/gpt-4o-mini": Override(input_usd_per_mtok=97),
        }
    )

    def input_of(name: str, provider: str = "") -> int:
        model = catalog.find(name, provider)
        assert model is not None and model.price is not None and model.price.input is not None
        return model.price.input // 1_000_000

    assert input_of("gpt-4o", "azure") == input_of("azure/gpt-4o") == input_of("openai/gpt-4o", "azure") == 99_000
    assert input_of("gpt-4o") == input_of("gpt-4o", "openai") == input_of("gpt-4o", "nobody") == 2_500
    assert input_of("openai/gpt-oss-120b", "groq") == 98_000
    assert input_of("openai/gpt-oss-120b", "together") == 150
    assert input_of("gpt-4o-mini") == input_of("gpt-4o-mini", "azure") == 97_000


def test_an_open_model_of_ones_own_is_found_by_its_full_name() -> None:
    catalog = BUILTIN.with_overrides({"acme-labs/Tiny-1B": Override(input_usd_per_mtok=0)})
    found = catalog.find("acme-labs/Tiny-1B", "vllm")
    assert found is not None and found.price == Price(input=0)
    assert catalog.find("Tiny-1B", "vllm") is None


def test_an_id_that_several_sell_is_overridden_at_each() -> None:
    catalog = BUILTIN.with_overrides({"openai/gpt-oss-120b": Override(input_usd_per_mtok=7)})
    for provider in ("groq", "together"):
        found = catalog.find("openai/gpt-oss-120b", provider)
        assert found is not None and found.price is not None
        assert (found.provider, found.price.input) == (provider, 7_000_000_000)


def test_overrides_add_up() -> None:
    first = BUILTIN.with_overrides({"azure/gpt-4o": Override(input_usd_per_mtok=1), "x": Override(context_tokens=5)})
    second = first.with_overrides({"x": Override(reasoning=True)})
    assert second.find("gpt-4o", "azure") == first.find("gpt-4o", "azure")
    assert second.find("x") == Model("x", "", "chat", 5, reasoning=True)
