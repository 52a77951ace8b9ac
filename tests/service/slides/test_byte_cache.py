"""The cache stays within its limit and evicts the least recently used values first."""

from __future__ import annotations

from service.slides.byte_cache import ByteCache


def make_cache(max_bytes: int) -> ByteCache[str]:
    """Return a cache in which a character counts as a byte."""
    return ByteCache(max_bytes, len)


def test_the_least_recently_used_value_is_evicted_first() -> None:
    cache = make_cache(30)
    for key in "abc":
        cache.put(key, key * 10)
    assert cache.get("a") == "a" * 10
    cache.put("d", "d" * 10)
    assert [cache.get(key) for key in "abcd"] == ["a" * 10, None, "c" * 10, "d" * 10]


def test_a_replaced_or_dropped_value_no_longer_counts() -> None:
    cache = make_cache(30)
    cache.put("a", "1" * 10)
    cache.put("a", "2" * 25)
    cache.put("b", "3" * 5)
    assert (cache.get("a"), cache.get("b")) == ("2" * 25, "3" * 5)
    cache.drop("a")
    cache.drop("a")
    cache.put("c", "4" * 25)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (None, "3" * 5, "4" * 25)


def test_a_value_larger_than_the_cache_is_not_stored() -> None:
    cache = make_cache(30)
    cache.put("a", "1" * 10)
    cache.put("b", "2" * 31)
    assert (cache.get("a"), cache.get("b")) == ("1" * 10, None)
    empty = make_cache(0)
    empty.put("a", "1")
    assert empty.get("a") is None
