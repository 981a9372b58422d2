"""`wroformer plan` as people call it: its output, its files, and everything that can go wrong."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import pytest
from support.helpers import of_a_program
from support.tiny_training import QUICKLY_COMPILED as MODEL
from support.tiny_training import tiny_run

from wroformer_jax.checkpoints import loading
from wroformer_jax.cli import app
from wroformer_jax.cli.plan_tables import tables
from wroformer_jax.config.groups import LossWeights
from wroformer_jax.errors import InputError
from wroformer_jax.parallel.mesh import make_mesh
from wroformer_jax.planning import lengths
from wroformer_jax.planning import plans as plan_module
from wroformer_jax.planning import topology as topology_module
from wroformer_jax.planning.hlo import Collective
from wroformer_jax.planning.plans import DoesNotFit, Memory, Plan
from wroformer_jax.planning.roofline import Roofline
from wroformer_jax.planning.time_parts import time_count
from wroformer_jax.planning.topology import local_devices
from wroformer_jax.planning.tpu_time import Operation
from wroformer_jax.training.state import time_of

GIB = 2**30
OPERATION = Operation("fusion.7", "fusion", "masks", "jit(f)/transpose(jvp(masks))/M/dot", 2, 0.005, 0.001, 0.002, 0.0)


def write_config(folder, **fields):
    """Writes a config file as train.py takes it."""
    small = {"seconds": 8.0, "synthetic": {"song_seconds": 9.0}, "loss": {"windows": (256,)}}
    settings = {**tiny_run(model=MODEL, **small).to_dict(), **fields}
    path = folder / "config.py"
    path.write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({settings!r})\n"
    )
    return path


@pytest.fixture
def config(tmp_path):
    return write_config(tmp_path)


@pytest.fixture
def compiled(monkeypatch):
    """Stands in for the compiler: 2 GiB of state and a quarter of a GiB a second. The plans that were asked for."""
    asked = []

    def plan(config, mesh, target, *, inference=False, progress=None):
        asked.append(config)
        if progress:
            progress("20 s: machine code of 7 operations so far")
        activations = int(config.seconds * GIB / 4)
        if target.memory and 2 * GIB + activations > target.memory:
            raise DoesNotFit(2 * GIB + activations, target.memory)
        return Plan(
            config=config,
            teacher=plan_module.teacher_of(config),
            inference=inference,
            target=target.name,
            device_kind="TPU v5 lite",
            mesh=dict(mesh.shape),
            memory=Memory(2 * GIB, 0, 0, activations, 0, 0, target.memory),
            collectives=(
                Collective("all-reduce", 4 * 2**20, 4, 2, True, "jit(f)/transpose(jvp(M))/while/body/dot"),
                Collective("all-gather", 2**20, 4, 1, False, "jit(f)/jvp()/sharding_constraint"),
            ),
            part_samples=config.crop_samples,
            flops=3 * 10**12,
            attention_flops=3 * 10**10,
            roofline=Roofline(1e12, 2e9, 6e6, 0.005, 0.0025, 0.00003),
            compile_seconds=1.0,
            time=time_count([OPERATION], 0.001, {"masks": 1e9}, 1e12) if progress else None,
        )

    monkeypatch.setattr(plan_module, "plan", plan)
    return asked


def run(*arguments):
    return app.main(["plan", *map(str, arguments)])


def refused(capsys, *arguments):
    """Returns the one line that the command leaves on stderr, with status 2."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = [line for line in err.splitlines() if line.startswith("wroformer: error: ")]
    assert "Traceback" not in err
    return line.removeprefix("wroformer: error: ")


# --- what it says


def test_the_tables(config, compiled, capsys):
    assert run("--config", config, "--memory", 16) == 0
    out, err = capsys.readouterr()
    assert "fits: 4.00 of 16.0 GiB a device (25%)" in out
    assert "audio           1 x 8 s a step, 1,001 frames each" in out
    lines = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert lines["state"][1] == "2.00"
    assert lines["activations"][1] == "2.00"
    assert lines["peak"][1] == "4.00"
    assert lines["total"][1] == "12.8"  # MiB: 2 times 2 * 3/4 * 4, and 3/4
    assert "M/dot" not in out
    assert "counted once" in out  # a loop of unknown turns
    assert "everything worked on at a time (model.places_at_once)" in out
    assert "Not planned: the config's batch of 2 (--set batch_size=2)" in out
    assert lines["all"][1] == "3.00"
    assert lines["of the paper's 8 s (arXiv 2510.25745)"][-3:] == ["14,418", "641,601", "44.5"]
    assert "between 5.00 ms (the three overlap perfectly) and 7.53 ms" in out
    assert "the bottleneck is compute" in out
    assert "not measured" in out
    assert "8 s: fits, 4.00 of 16.0 GiB a device" in err
    assert "planning a batch of 1, the least that the mesh takes; the config's is 2 (--set batch_size=2)" in err
    assert max(map(len, out.splitlines())) < 140


def test_collectives_by_name(config, compiled, capsys):
    assert run("--config", config, "--verbose") == 0
    assert "backward: M/dot" in capsys.readouterr().out


def test_devices_that_have_padding_only(config, compiled):
    assert run("--config", config) == 0
    found = plan_module.plan(compiled[0], make_mesh(compiled[0].mesh), local_devices())
    cut = dataclasses.replace(found, mesh={"data": 1, "fsdp": 1, "seq": 8}, part_samples=2 * 16000)
    assert cut.num_parts == 4
    out = tables(cut, None, verbose=False)
    assert "of it a device  2 s of an example; 4 of 8 have padding only" in out


def test_the_longest(config, compiled, capsys, tmp_path):
    assert run("--config", config, "--memory", 16, "--seconds", "max", "--json", tmp_path / "plan.json") == 0
    out, err = capsys.readouterr()
    found = json.loads((tmp_path / "plan.json").read_text())
    fits, too_long = found["longest"]["fits"], found["longest"]["too_long"]
    assert 0.95 * 56 < fits["seconds"] <= 56 < too_long["seconds"] < 1.05 * 56
    assert fits["seconds"] >= 0.95 * too_long["seconds"]
    assert found["memory_bytes_per_device"]["peak"] == fits["needed"]
    assert f"longest audio   {fits['seconds']:.4g} s fit, {too_long['seconds']:.4g} s do not" in out
    assert len(compiled) == err.count("compiling ...") <= 4


def test_an_hour_is_the_longest_there_is(config, compiled, capsys):
    assert run("--config", config, "--memory", 2000, "--seconds", "max") == 0
    assert "fits up to the longest that a run takes, 1 h" in capsys.readouterr().out
    assert [one.seconds for one in compiled] == [8.0, 3600.0]


@pytest.mark.parametrize("learns", [False, True], ids=["alone", "with a teacher"])
def test_the_shortest_example_is_one_that_the_mesh_can_cut(learns):
    """For eight devices, in whole windows of 8 hops if there is a teacher; a part needs 24 hops for its halos."""
    weights = {"l1": 1.0, "stft": 1.0, "masks": float(learns)}
    mixer = {"time_mixer": "windowed_sink", "num_sinks": 2, "window": 48}
    config = tiny_run(MODEL | mixer, teacher="not read", teacher_seconds=0.064, loss={"weights": weights})
    mesh = jax.sharding.AbstractMesh((1, 1, 8), ("data", "fsdp", "seq"))
    shortest = lengths.shortest_crop(config, mesh)
    assert shortest > 8 * (16 if learns else 23) * 128 / 16000
    time_of(lengths.with_seconds(config, shortest), mesh)
    with pytest.raises(InputError, match="too short to be cut over 8 devices"):
        time_of(lengths.with_seconds(config, shortest / 1.3), mesh)


@pytest.fixture
def topology(monkeypatch):
    """Stands in for libtpu: the devices that are here under the name of a slice."""
    monkeypatch.setattr(topology_module, "find_topology", lambda name: local_devices()._replace(name=name))


def test_the_time_of_each_part(config, compiled, topology, capsys, tmp_path):
    files = ["--json", tmp_path / "plan.json", "--picture", tmp_path / "time.png"]
    assert run("--config", config, "--topology", "v5e:1x1", "--time", "--verbose", *files) == 0
    out, err = capsys.readouterr()
    lines = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert lines["masks"][1:6] == ["10.0", "10.0%", "4.00", "25.0%", "products"]
    assert lines["collectives"][1:5] == ["1.00", "-", "1.00", "-"]
    assert "Of it in the backward pass, with what is computed again: 10.0 ms by the estimate, 4.00 ms" in out
    assert "masks: backward: masks/M/dot" in out
    assert "8 s: 20 s: machine code of 7 operations so far" in err
    assert json.loads((tmp_path / "plan.json").read_text())["time"]["parts"]["masks"]["scheduled"] == 0.004
    assert (tmp_path / "time.png").read_bytes().startswith(b"\x89PNG")
    assert max(map(len, out.splitlines())) < 150


def test_the_time_of_the_longest_is_counted_once(config, compiled, topology, capsys):
    arguments = ["--topology", "v5e:1x1", "--memory", 16, "--seconds", "max", "--time"]
    assert run("--config", config, *arguments) == 0
    out, err = capsys.readouterr()
    assert err.count("to the end") == err.count("machine code") == 1
    assert "TIME OF A STEP BY PART" in out


def test_json_has_everything(config, compiled, tmp_path):
    assert run("--config", config, "--json", tmp_path / "plan.json") == 0
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["sent_bytes_per_device"] == 2 * 1.5 * 4 * 2**20 + 0.75 * 2**20
    assert found["roofline"]["overlapped_seconds"] == 0.005
    assert found["config"]["batch_size"] == 1
    assert [one["executions"] for one in found["collectives"]] == [2, 1]


# --- what it is told


def test_a_recipe_by_name(compiled, capsys):
    assert run("--config", "quickstart", "--set", "steps=7") == 0
    assert (compiled[0].steps, compiled[0].model.dim) == (7, 64)
    capsys.readouterr()
    assert "unknown recipe 'quikstart', did you mean 'quickstart'?" in refused(capsys, "--config", "quikstart")


def test_settings_are_changed(config, compiled):
    changes = [
        "--set",
        "model.dim=32",
        "--set",
        "model.blocks_a_save=1",
        "--set",
        "steps=7",
        "--set",
        "optimizer.schedule=cosine",
    ]
    assert run("--config", config, "--seconds", 20, *changes) == 0
    [asked] = compiled
    assert (asked.model.dim, asked.steps, asked.optimizer.schedule, asked.seconds) == (32, 7, "cosine", 20.0)
    assert asked.synthetic.song_seconds >= 20


@pytest.mark.parametrize(("mixer", "sinks"), [("full", 0), ("windowed_sink", 2)])
def test_the_time_mixer(config, compiled, mixer, sinks):
    assert run("--config", config, "--time-mixer", mixer) == 0
    assert (compiled[0].model.time_mixer, compiled[0].model.num_sinks) == (mixer, sinks)


def test_sinks_where_there_were_none(tmp_path, compiled):
    model = {**tiny_run(model=MODEL).model.to_dict(), "time_mixer": "full", "num_sinks": 0}
    assert run("--config", write_config(tmp_path, model=model), "--time-mixer", "windowed_sink") == 0
    assert compiled[0].model.num_sinks == 8


def test_a_model_of_ones_own(tmp_path, compiled, monkeypatch):
    """Its settings replace the config's, but for dtypes and memory; training gives it windows, as `train` does."""
    saved = tiny_run(model=MODEL | {"dim": 48, "time_mixer": "full", "num_sinks": 0}).model
    monkeypatch.setattr(loading, "read", lambda source: (saved, {}, None))
    config = write_config(tmp_path)
    assert run("--config", config, "--init", "mine", "--set", "model.remat=none") == 0
    assert run("--config", config, "--init", "mine", "--inference") == 0
    step, forward = (one.model for one in compiled)
    assert (step.dim, step.time_mixer, step.num_sinks, step.remat) == (48, "windowed_sink", 2, "none")
    assert (forward.dim, forward.time_mixer, forward.num_sinks) == (48, "full", 0)


def test_the_teacher_can_be_left_out(tmp_path, compiled, capsys):
    path = write_config(tmp_path, teacher="any.ckpt", loss_weights={"l1": 1.0, "stft": 1.0, "masks": 1.0})
    assert run("--config", path) == 0
    assert "teacher         full attention" in capsys.readouterr().out
    assert run("--config", path, "--no-teacher") == 0
    assert compiled[1].loss.weights == LossWeights(l1=1.0, stft=1.0, masks=0.0)
    assert "teacher         none" in capsys.readouterr().out


# --- what can go wrong


def test_too_long_says_by_how_much_and_what_fits(config, compiled, capsys):
    sentence = refused(capsys, "--config", config, "--memory", 16, "--seconds", 100)
    assert "1 min 40 s do not fit into local CPU: they take 27.0 of 16.0 GiB a device, 11.0 GiB too much" in sentence
    fitting = next(one.seconds for one in compiled if one.seconds <= 56)
    assert f"(--seconds {fitting:g})" in sentence
    assert fitting > 0.75 * 56
    assert len(compiled) == 2


def test_nothing_fits(config, compiled, capsys):
    for seconds in (8, "max"):
        sentence = refused(capsys, "--config", config, "--memory", 1, "--seconds", seconds)
        assert "not even" in sentence
        assert "the state alone is" in sentence


def test_the_longest_needs_to_know_the_memory(config, compiled, capsys):
    sentence = refused(capsys, "--config", config, "--seconds", "max")
    assert sentence == "the memory of these devices is not known: name a --topology, or give --memory GIB"
    assert compiled == []


def test_an_unknown_topology(config, capsys):
    sentence = refused(capsys, "--config", config, "--topology", "v5e:3x5")
    assert "there is no topology 'v5e:3x5'. A name is GENERATION:SHAPE, as in v5e:4x4; there are v4: 2x2x1" in sentence


def test_no_libtpu(config, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "libtpu" else find(name))
    sentence = refused(capsys, "--config", config, "--topology", "v5e:2x2")
    assert "pip install --no-deps 'libtpu==" in sentence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "model.dimm=8"], "unknown model field 'dimm', did you mean 'dim'?"),
        (["--set", "mdoel.dim=8"], "unknown config field 'mdoel', did you mean 'model'?"),
        (["--set", "steps.of=8"], "--set steps.of=8: steps has no fields"),
        (["--set", "steps"], "--set steps: expected FIELD=VALUE"),
        (["--time-mixer", "mamba"], "time_mixer is 'mamba', expected one of"),
        (["--mesh", "data=3"], "mesh is data=3, fsdp=1, seq=1, which takes 3 devices, but there are 1"),
        (["--seconds", "4000"], "seconds is 4000.0, expected a number above 0 and of at most 3600"),
        (["--seconds", "0.001"], "seconds is 0.001, which is 0 samples"),
        (["--set", "optimizer.accumulate=2", "--set", "batch_size=3"], "batch_size is 3, which does not divide"),
        (["--json", "nowhere/plan.json"], "--json nowhere/plan.json cannot be written: nowhere is not a folder"),
        (["--json", "."], "--json . cannot be written: . is a folder"),
        (["--time"], "--time counts the machine code of TPUs: name a --topology"),
        (["--picture", "time.png"], "--picture draws what --time counts: add --time"),
        (["--time", "--topology", "v5e:1x1", "--picture", "."], "--picture . cannot be written: . is a folder"),
        (["--init", "nowhere"], "nowhere"),
    ],
)
def test_settings_that_cannot_be(config, compiled, capsys, arguments, words):
    assert words in refused(capsys, "--config", config, *arguments)
    assert compiled == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("def get_config(:", "cannot be read: invalid syntax"),
        ("get_config = 3", "cannot be read: 'int' object is not callable"),
        ("get_config = dict", "get_config() gives dict, expected a ConfigDict"),
    ],
)
def test_files_that_are_no_configs(tmp_path, capsys, text, words):
    path = tmp_path / "settings.py"
    if text is not None:
        path.write_text(text)
    sentence = refused(capsys, "--config", path)
    assert str(path) in sentence
    assert words in sentence


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seconds", "long"],
        ["--seconds", "-1"],
        ["--mesh", "time=4"],
        ["--mesh", "data"],
        ["--tolerance", "0"],
        ["--memory", "some"],
    ],
)
def test_options_that_make_no_sense(config, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        run("--config", config, *arguments)
    assert stopped.value.code == 2
    assert f"argument {arguments[0]}" in capsys.readouterr().err


# --- nothing stands in here


@pytest.mark.slow
def test_from_a_file_to_a_plan(tmp_path):
    """A forward pass on four virtual devices, its parameters cut over them, in a process of its own."""
    path = write_config(tmp_path, seconds=0.1)
    command = [sys.executable, "-m", "wroformer_jax.cli", "plan", "--config", path, "--inference"]
    command += ["--mesh", "fsdp=4", "--json", tmp_path / "plan.json"]
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=4"
    result = subprocess.run(
        list(map(str, command)),
        env={**of_a_program(), "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "forward pass, compiled for local CPU" in result.stdout
    assert "no estimate: the peak rates of a cpu are not known" in result.stdout
    found = json.loads((tmp_path / "plan.json").read_text())
    assert (found["num_devices"], found["batch_size"]) == (4, 4)
    assert {one["kind"] for one in found["collectives"]} == {"all-gather"}
    memory = Memory(
        **{field.name: found["memory_bytes_per_device"][field.name] for field in dataclasses.fields(Memory)}
    )
    assert memory.peak == found["memory_bytes_per_device"]["peak"]
