"""A version is loaded once after the alias came to it, and never while it is served."""

from hypothesis import given
from hypothesis import strategies as st

from cprec.serving.alias_watch import AliasWatch

FIRST = 1


@given(
    looks=st.lists(st.one_of(st.none(), st.integers(1, 4)), max_size=30),
    broken=st.sets(st.integers(2, 4)),
)
def test_every_move_is_followed_once(looks: list[int | None], broken: set[int]) -> None:
    watch, served = AliasWatch(FIRST), FIRST
    before: int | None = FIRST
    for pointed in looks:
        watch = watch.after_look(pointed)
        wanted = watch.wants(pointed)
        # A version that could not be loaded is tried again only after the alias was elsewhere.
        has_moved = pointed != before
        is_new = pointed is not None and pointed != served
        assert wanted == (is_new and (has_moved or pointed not in broken))
        if wanted and pointed is not None:
            if pointed in broken:
                watch = watch.after_failure(pointed)
            else:
                watch, served = watch.after_success(pointed), pointed
        assert watch.served == served
        before = pointed
    assert not watch.wants(served)
    assert not watch.wants(None)
