"""Ways in which files come to harm."""

from copy import deepcopy

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from ..release import ALL

__all__ = ["JUNK", "bounded", "damaged", "mutated"]


def bounded(examples):
    """Return settings by which every run is the same; without `make test-all` a fifth of the examples must do."""
    examples = examples if ALL else max(examples // 5, 10)
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.large_base_example]
    # Without shrinking: what fails is small as it is, and looking for less would take minutes.
    phases = (Phase.explicit, Phase.generate)
    return settings(
        max_examples=examples, derandomize=True, deadline=None, suppress_health_check=checks, database=None, phases=phases
    )


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 1, 10**6]),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-5, 5), max_size=5),
    st.dictionaries(st.text(max_size=4), st.integers(-5, 5), max_size=2),
)


@st.composite
def damaged(draw, content):
    """Bytes that were cut, flipped, overwritten, doubled, or lost; or whole, which Hypothesis tries first, and once."""
    data = bytearray(content)
    if draw(st.integers(0, 3)) == 0:
        return content
    how = draw(st.sampled_from(["cut", "flip", "flip", "overwrite", "insert", "repeat", "head", "none"]))
    at = draw(st.integers(0, max(len(data) - 1, 0)))
    if how == "cut":
        del data[at:]
    elif how == "flip":
        for place in [at, *draw(st.lists(st.integers(0, len(data) - 1), max_size=4))]:
            data[place] ^= 1 << draw(st.integers(0, 7))
    elif how == "overwrite":
        data[at : at + 16] = draw(st.binary(min_size=1, max_size=64))
    elif how == "insert":
        data[at:at] = draw(st.binary(min_size=1, max_size=64))
    elif how == "repeat":
        data += data[at:]
    elif how == "head":  # where formats keep their sizes
        data[draw(st.integers(0, min(63, len(data) - 1)))] = draw(st.integers(0, 255))
    else:
        data = bytearray(draw(st.binary(max_size=32)))
    return bytes(data)


def _places(tree):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from _places(value)


def reordered(tree):
    """Return a tree with the keys of each dictionary from last to first, which means the same."""
    if isinstance(tree, dict):
        return {key: reordered(value) for key, value in reversed(tree.items())}
    return [reordered(value) for value in tree] if isinstance(tree, list) else tree


@st.composite
def mutated(draw, tree):
    """A tree of plain values of which a few were replaced or left out; or the same in another order, tried first, and once."""
    if draw(st.integers(0, 3)) == 0:
        return reordered(tree)
    tree = deepcopy(tree)
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(tree))
        if not places:
            return draw(JUNK)
        container, key = places[draw(st.integers(0, len(places) - 1))]
        if draw(st.booleans()):
            del container[key]
        else:
            container[key] = draw(JUNK)
    return tree
