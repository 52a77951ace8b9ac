"""The cache stays within its bytes and drops what was used least recently."""

from __future__ import annotations

from service.slides.tile_cache import ByteCache


def test_the_least_recently_used_goes_first() -> None:
    cache: ByteCache[str] = ByteCache(30)
    for key in "abc":
        cache.put(key, key.upper(), 10)
    assert cache.get("a") == "A"
    cache.put("d", "D", 10)
    assert [cache.get(key) for key in "abcd"] == ["A", None, "C", "D"]
    assert cache.num_bytes == 30


def test_replacing_and_dropping_keep_the_sum_right() -> None:
    cache: ByteCache[str] = ByteCache(30)
    cache.put("a", "old", 10)
    cache.put("a", "new", 25)
    assert (cache.get("a"), cache.num_bytes) == ("new", 25)
    cache.drop("a")
    cache.drop("a")
    assert (cache.get("a"), cache.num_bytes) == (None, 0)


def test_what_is_larger_than_the_cache_is_not_held() -> None:
    cache: ByteCache[str] = ByteCache(30)
    cache.put("a", "A", 10)
    cache.put("b", "B", 31)
    assert (cache.get("a"), cache.get("b")) == ("A", None)
    none: ByteCache[str] = ByteCache(0)
    none.put("a", "A", 1)
    assert none.get("a") is None
