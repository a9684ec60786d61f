import pickle

from voxelwave.ops.caching import LastUsed


def test_what_was_used_last_is_kept_and_no_more():
    made = []

    def get(kept, key):
        return kept.get(key, lambda: made.append(key) or key.upper())

    kept = LastUsed(2)
    assert [get(kept, key) for key in "abab"] == list("ABAB")
    assert made == ["a", "b"]
    get(kept, "c")  # in place of a, which was used before b
    kept = pickle.loads(pickle.dumps(kept))
    assert get(kept, "b") == "B"
    assert made == ["a", "b", "c"]
    get(kept, "a")
    assert made == ["a", "b", "c", "a"]


def test_of_none_nothing_is_kept():
    made = []
    kept = LastUsed(0)
    for _ in range(2):
        kept.get("a", lambda: made.append(1))
    assert made == [1, 1]
