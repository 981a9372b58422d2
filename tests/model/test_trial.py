"""A form of attention is compared with the scan form on the device; a wrong one is not used."""

import dataclasses
import logging

import jax
import pytest

from wroformer_jax.config import ModelConfig
from wroformer_jax.model.trial import checked, form_of

# "interpret" is the only form besides the scan form that every device has.
CONFIG = ModelConfig(attention_impl="interpret", heads=2, dim_head=64, num_bands=12, window=10, num_sinks=8)
CPU = jax.devices("cpu")[0]


def scan_form(config):
    """The scan form under the name of another one."""
    return form_of(ModelConfig(**{**config.to_dict(), "attention_impl": "scan"}))


def lines(caplog):
    return [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "wroformer"]


@pytest.mark.slow
def test_the_kernels_pass_and_say_so_once(caplog):
    caplog.set_level(logging.INFO, "wroformer")
    assert checked(CONFIG, CPU).attention_impl == "interpret"
    assert checked(CONFIG, CPU).attention_impl == "interpret"
    [(level, line)] = lines(caplog)
    assert level == "INFO"
    assert line.startswith("attention kernels (interpret) checked on cpu in ")
    assert line.endswith(" of the largest value")


def test_the_scan_form_is_not_tried(caplog):
    caplog.set_level(logging.INFO, "wroformer")
    assert checked(ModelConfig(attention_impl="scan"), CPU, form=None).attention_impl == "scan"
    assert not lines(caplog)


def wrong_values(attend):
    """Outputs that are a little too large, with the right gradients."""
    return lambda q, k, v: attend(q, k, v) + 0.01 * jax.lax.stop_gradient(attend(q, k, v))


def wrong_gradients(attend):
    """Right outputs, whose gradient is a little too large."""

    def attend_wrongly(q, k, v):
        out = attend(q, k, v)
        return out + 0.01 * (out - jax.lax.stop_gradient(out))

    return attend_wrongly


def no_numbers(attend):
    return lambda q, k, v: attend(q, k, v) * float("nan")


def raising(attend):
    def fail(q, k, v):
        raise NotImplementedError("no such kernel\nsecond line")

    return fail


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (wrong_values, "outputs of the attention over bands differ by 1.0e-02 of the largest value"),
        (wrong_gradients, "gradients of keys of the attention over bands differ by 1.0e-02 of the largest value"),
        (no_numbers, "outputs of the attention over bands differ by nan of the largest value"),
        (raising, "it fails with NotImplementedError: no such kernel"),
    ],
)
def test_a_wrong_form_is_not_used(caplog, spoil, said):
    def form(config):
        over_bands, along_time = scan_form(config)
        return spoil(over_bands), along_time

    assert checked(CONFIG, CPU, form).attention_impl == "scan"
    assert checked(CONFIG, CPU, form).attention_impl == "scan"
    [(level, line)] = lines(caplog)
    assert level == "WARNING"
    assert line.startswith("attention is computed by jax.lax.scan and not by 'interpret', which was tried on cpu: ")
    assert said in line
    assert "\n" not in line


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [{"window": 12}, {"window": 8}, {"num_sinks": 7}, {"time_mixer": "full"}], ids=str)
def test_a_form_that_sees_other_keys_is_not_used(caplog, dtype, changes):
    def form(config):
        over_bands, _ = scan_form(config)
        _, along_time = scan_form(dataclasses.replace(config, **changes))
        return over_bands, along_time

    config = dataclasses.replace(CONFIG, dtype=dtype)
    assert checked(config, CPU, scan_form).attention_impl == "interpret"
    assert checked(config, CPU, form).attention_impl == "scan"
    [(_, line)] = lines(caplog)
    assert "of the attention along time" in line
