"""Rows of softnet: percentiles of slots, and what softnet_stat counted per CPU."""

from __future__ import annotations

import pytest

from netbpf.declare import softirqs
from netbpf.declare.softirqs import SLOTS, counted, cpus, percentile, rows, upper_bound


def slots(what: str, counts: dict[int, int]) -> dict[str, int]:
    """Return the slots of a map's value, {slot: count} filled in."""
    return {f"{what}_{slot}": counts.get(slot, 0) for slot in range(SLOTS)}


def entry(cpu: int, softirq: str, **values: int):
    """Return an entry of the map."""
    sums = dict.fromkeys(("runs", "run_ns", "ksoftirqd", "polls", "packets", "budget", "full"), 0)
    return {"cpu": cpu, "softirq": softirq}, {
        **sums, **slots("run", {}), **slots("delay", {}), **values,
    }  # fmt: skip


def test_slots_follow_each_other_four_per_power_of_two():
    highest = [upper_bound(slot) for slot in range(SLOTS)]
    assert highest[:13] == [0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15, 19]
    assert all(low < high <= 1.25 * (low + 1) for low, high in zip(highest[3:], highest[4:]))
    assert highest[-1] == (1 << 19) - 1


@pytest.mark.parametrize(
    "counts, wanted",
    [({}, None), ({0: 1}, 0), ({7: 99, 8: 1}, 7), ({7: 98, 8: 2}, 9), ({3: 1, 71: 1}, 524287)],
)
def test_percentile_is_the_bound_that_one_in_a_hundred_exceeds(counts, wanted):
    assert percentile(slots("run", counts), "run") == wanted


def test_rows_have_microseconds_and_no_runs_outside_of_softirqs():
    found = rows(
        [entry(0, "NET_RX", runs=2, run_ns=5999, run_5=2), entry(1, "thread", polls=3)], {}
    )
    assert (found[0]["run_us"], found[0]["run_p99_us"], found[0]["delay_p99_us"]) == (5, 5, None)
    assert (found[1]["polls"], found[1]["runs"], found[1]["run_us"]) == (3, None, None)


def test_counters_complete_the_rows_of_their_cpu_and_add_missing_ones():
    found = rows([entry(1, "NET_TX", runs=1), entry(1, "NET_RX", runs=7)], {"cpu": None})
    grown = {"Softnet.1.time_squeeze": 5, "Softnet.10.dropped": 3}
    done = counted(found, grown, {"cpu": None})
    assert [(row["cpu"], row["softirq"]) for row in done] == [
        (1, "NET_RX"), (1, "NET_TX"), (10, "NET_RX"),
    ]  # fmt: skip
    assert [row["squeezed"] for row in done] == [5, None, 0]
    assert [row["dropped"] for row in done] == [0, None, 3]
    assert [row["runs"] for row in done] == [7, 1, 0]
    assert len(counted(found, grown, {"cpu": [(0, 9)]})) == 2


def test_cpus_are_numbers_and_ranges():
    assert cpus("0,4-7") == [(0, 0), (4, 7)]
    for text in ("", "a", "3-1", "1,", "-1", "1-2-3"):
        with pytest.raises(ValueError):
            cpus(text)


def test_filter_of_cpus_is_compared_in_the_program():
    assert "FILTER_CPU(x)" in softirqs.constants({"cpu": [(0, 3)]})
    assert "FILTER_CPU(x)" not in softirqs.constants({"cpu": None})
