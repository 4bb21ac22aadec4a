"""What a worker knows of kept questions: bounded in bytes, shared out among tenants, and gone when it is purged."""

import random
from typing import Any

import numpy

from turnout.cache.purge import Purge
from turnout.cache.semantic.index import DIMENSIONS
from turnout.cache.semantic.scopes import Item, Scope, Scopes

RNG = numpy.random.default_rng(5)


def vector() -> bytes:
    found = RNG.normal(size=DIMENSIONS)
    return numpy.asarray(found / numpy.linalg.norm(found), numpy.float32).tobytes()


def item(number: int, dead_ns: int = 1000, tenant: str = "t", **more: Any) -> Item:
    given: dict[str, Any] = {"text": f"question {number}", "said": None, "tag": "", "key": "k", "tags": "", "stored_ns": 0, **more}
    return Item(digest=number.to_bytes(32, "big"), tenant=tenant, dead_ns=dead_ns, **given)


def opened(scopes: Scopes, number: int, owner: str = "t", most: int = 10_000) -> Scope:
    scope = scopes.open(number.to_bytes(16, "big"), owner, "route", "m")
    scope.most = most
    return scope


def test_the_nearest_that_is_alive_is_found() -> None:
    scope = Scope(b"s", "t", "route", "m")
    near, far = vector(), vector()
    scope.add(item(1, dead_ns=10), near)
    scope.add(item(2, dead_ns=100), far)
    for now, number in ((0, 1), (50, 2)):
        found = scope.nearest(near if now == 0 else far, now)
        assert found[0][0].digest == number.to_bytes(32, "big") and found[0][1] > 0.999
    assert scope.nearest(far, 100) == []
    assert not scope.items and scope.index.size == 0


def test_the_same_question_again_takes_the_place_of_the_first() -> None:
    scope = Scope(b"s", "t", "route", "m")
    first, again = item(1), item(1, dead_ns=2000)
    scope.add(first, vector())
    first.hits = 3
    scope.add(again, vector())
    assert (len(scope.items), scope.index.size, again.hits) == (1, 1, 3)


def test_all_of_it_stays_within_its_bounds_and_a_tenant_within_its_share() -> None:
    scopes = Scopes(400_000, 200_000)
    lot = random.Random(1)
    for number in range(3000):
        tenant = lot.choice("abc")
        scope = opened(scopes, int(30 * lot.random() ** 4) * 3 + "abc".index(tenant), tenant, 40)
        scopes.put(scope, item(number, tenant=tenant), vector(), 0)
        assert len(scope.items) <= 40
        assert scopes.bytes <= 400_000
        held = {name: sum(s.held_bytes for s in scopes if s.owner == name) for name in "abc"}
        assert all(size <= 200_000 for size in held.values()), held
        assert sum(held.values()) == scopes.bytes == sum(s.held_bytes for s in scopes)
    assert min(scopes.evicted.values()) > 0


def test_one_large_scope_gives_way_to_itself_and_keeps_what_is_asked_for() -> None:
    scopes = Scopes(300_000, 300_000)
    scope = opened(scopes, 1)
    wanted = item(10_000)
    scopes.put(scope, wanted, vector(), 0)
    for number in range(600):
        wanted.hits += 1
        scopes.put(scope, item(number), vector(), 0)
    assert wanted.digest in scope.items and scopes.bytes <= 300_000 and 50 < len(scope.items) < 600


def test_a_tenant_cannot_wash_out_another() -> None:
    scopes = Scopes(300_000, 150_000)
    mine = opened(scopes, 1, "quiet")
    for number in range(20):
        scopes.put(mine, item(number, tenant="quiet"), vector(), 0)
    for number in range(2000):
        scopes.put(opened(scopes, 100 + number % 50, "loud"), item(5000 + number, tenant="loud"), vector(), 0)
    assert len(mine.items) == 20


def test_a_purge_takes_what_fits_and_a_dry_one_only_counts() -> None:
    scopes = Scopes(1 << 24, 1 << 24)
    for number in range(40):
        tenant = "ab"[number % 2]
        scope = scopes.open(bytes([number % 4]) * 16, tenant, "r1" if number % 4 < 2 else "r2", "m")
        scopes.put(scope, item(number, tenant=tenant, key=f"k{number % 3}", tags="x,y" if number < 10 else ""), vector(), 0)

    def count(**what: Any) -> int:
        return sum(scopes.purge(Purge(**what)))

    assert (count(), count(tenant="a"), count(route="r1"), count(tag="y"), count(key="k0"), count(model="m"), count(model="n")) == (40, 20, 20, 10, 14, 40, 0)
    assert count(entry=(7).to_bytes(32, "big").hex()) == 1
    assert count(tenant="a", dry=False) == 20
    assert (count(), count(tenant="a")) == (20, 0)
    assert count(dry=False) == 20
    assert (len(scopes), scopes.items, scopes.bytes) == (0, 0, 0)


def test_a_large_scope_that_made_room_is_let_go_a_little_at_a_time() -> None:
    scopes = Scopes(3_000_000, 3_000_000)
    large = opened(scopes, 1)
    for number in range(1_000):
        scopes.put(large, item(number), vector(), 0)
    other = opened(scopes, 2)
    for number in range(1_600):
        scopes.put(other, item(5_000 + number), vector(), 0)
    assert scopes.known(large.key) is None and scopes.dropped == [large] and len(large.items) > 900
    turns = 1
    while scopes.sweep():
        turns += 1
        assert len(large.items) >= 1_000 - 250 * turns
    assert not large.items and turns >= 4 and scopes.dropped == []
    again = opened(scopes, 1)
    assert again is not large and again.nearest(vector(), 0) == []
