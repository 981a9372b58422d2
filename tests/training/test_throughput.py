"""Speed of training and memory in use, as the log shows them."""

import pytest

from wroformer_jax.training.throughput import Work, memory_in_use, speed


def test_speed_is_that_of_all_devices_together():
    work = Work(audio_seconds=64.0, flops=275 * 10**12, device_kind="TPU v4", num_devices=4)
    assert speed(work, 0.5) == {"audio_seconds_per_second": 128.0, "mfu": 0.5}
    assert speed(work._replace(device_kind="cpu"), 0.5) == {"audio_seconds_per_second": 128.0}


class Device:
    def __init__(self, stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats


@pytest.mark.parametrize(
    ("stats", "expected"),
    [
        ([None, None], {}),
        ([{}], {}),
        ([{"bytes_in_use": 2**30, "peak_bytes_in_use": 2**31}, {"peak_bytes_in_use": 3 * 2**30}], {"hbm_gib": 3.0}),
        ([{"bytes_in_use": 2**29}], {"hbm_gib": 0.5}),
        ([{"num_allocs": 1}], {}),
    ],
)
def test_memory_is_that_of_the_fullest_device(stats, expected):
    assert memory_in_use(map(Device, stats)) == expected
