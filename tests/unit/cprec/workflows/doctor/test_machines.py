"""Disks, versions and clocks of machines, judged by what they say of themselves."""

from dataclasses import replace

import pytest

from cprec.workflows.doctor.machines import (
    GIB,
    PACKAGES,
    Machine,
    describe_this_machine,
    judge_clocks,
    judge_disks,
    judge_versions,
)

HERE = describe_this_machine()


def machine(name: str, temporary_gib: float = 100, shared_gib: float = 10) -> Machine:
    return replace(
        HERE,
        name=name,
        temporary_free=int(temporary_gib * GIB),
        shared_total=int(shared_gib * GIB),
    )


def test_this_machine_has_every_package() -> None:
    assert set(HERE.versions) == {"python", *PACKAGES}
    assert "none" not in HERE.versions.values()
    assert HERE.temporary_free > 0


@pytest.mark.parametrize(("gib", "status"), [(0.5, "fail"), (5, "warn"), (50, "ok")])
def test_the_fullest_disk_counts(gib: float, status: str) -> None:
    temporary, shared = judge_disks("disk", [machine("a"), machine("b", gib), machine("c")])
    assert (temporary.status, shared.status) == (status, "ok")
    assert "of b" in temporary.seen


def test_the_smallest_shared_memory_counts() -> None:
    _, shared = judge_disks("disk", [machine("a"), machine("b", shared_gib=0.0625)])
    assert (shared.status, shared.seen) == ("warn", "0.1 GiB on b")


def test_a_machine_without_shared_memory_is_not_judged_by_it() -> None:
    assert len(list(judge_disks("disk", [replace(HERE, shared_total=None)]))) == 1


def test_other_versions_on_one_node_are_a_failure_that_names_it() -> None:
    other = replace(machine("b"), versions={**HERE.versions, "torch": "2.0.0"})
    assert judge_versions(HERE, [machine("a")]).status == "ok"
    finding = judge_versions(HERE, [machine("a"), other])
    assert finding.status == "fail"
    assert finding.seen == f"torch is 2.0.0 on b, {HERE.versions['torch']} here"
    missing = replace(machine("b"), versions={})
    assert "and 8 more" in judge_versions(HERE, [missing]).seen


@pytest.mark.parametrize(("skew", "status"), [(0.2, "ok"), (-3, "warn"), (-900, "fail")])
def test_the_clock_that_is_furthest_off_counts(skew: float, status: str) -> None:
    finding = judge_clocks({"a": 0.1, "b": skew})
    assert finding.status == status
    assert "(b)" in finding.seen
