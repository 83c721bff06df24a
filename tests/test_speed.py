"""Samples per second: what is counted, and with which machine."""

from __future__ import annotations

import time

import pytest

from crystalvae.errors import ConfigError
from crystalvae.evaluation.speed import SamplingTimes, speed_section, time_sampling


def test_only_the_rounds_after_the_warmup_are_timed():
    asked = []

    def sample(count):
        asked.append(count)
        time.sleep(0.05 if len(asked) == 1 else 0.01)

    times = time_sampling(sample, samples=7, device="cpu", repeats=2)
    assert asked == [7, 7, 7]
    assert len(times.seconds) == 2
    assert all(seconds > 0.009 for seconds in times.seconds)
    assert times.samples_per_second < 7 / 0.009


def test_the_median_round_counts():
    section = speed_section(SamplingTimes(samples=100, seconds=[2.0, 40.0, 4.0], device="cpu"))
    assert section.metrics["samples_per_second"].value == 25.0
    assert section.metrics["seconds_per_1000"].value == 40.0
    machine = section.settings["machine"]
    assert machine["processor"]
    assert machine["cores"] >= 1
    assert machine["accelerator"] == ""
    assert str(machine["processor"]) in section.metrics["samples_per_second"].definition


def test_crystals_from_files_have_no_speed():
    section = speed_section(None)
    assert "nothing was sampled" in section.skipped
    assert not section.metrics


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"repeats": 0}])
def test_counts_must_be_positive(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        time_sampling(lambda count: count, **{"samples": 1, "device": "cpu", **wrong})
