"""Plans a training step or a forward pass: compiles it for given devices and never runs it.

`plan` reads memory and collectives off the compiled program, counts FLOPs from the settings and estimates the time by a
roofline.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from wroformer_jax.config.model import ModelConfig, forward_only
from wroformer_jax.config.training import TrainingConfig
from wroformer_jax.errors import InputError
from wroformer_jax.model.flops import forward_flops, num_frames, published_score_entries
from wroformer_jax.model.implementations import settled
from wroformer_jax.model.layers import Params
from wroformer_jax.model.params import abstract_params
from wroformer_jax.model.roformer import RoFormer
from wroformer_jax.parallel.context_parallel import padded_samples
from wroformer_jax.parallel.hardware import known_hardware
from wroformer_jax.parallel.mesh import check_batch, make_mesh, num_example_shards, num_time_parts
from wroformer_jax.parallel.sharding import batch_shardings, bytes_per_device, replicated
from wroformer_jax.planning.bundles import Dumps
from wroformer_jax.planning.compiler_memory import COMPILED, CompilationError, layout, layout_and_code
from wroformer_jax.planning.hlo import Collective, collectives
from wroformer_jax.planning.roofline import Roofline, Work, estimate_times, forward_work, training_passes
from wroformer_jax.planning.time_parts import TimeCount, time_count, useful_flops
from wroformer_jax.planning.topology import Target, out_of_memory
from wroformer_jax.planning.tpu_time import Operation, operations, speed_of
from wroformer_jax.separation.forward import in_pieces
from wroformer_jax.separation.over_devices import spread_forward
from wroformer_jax.training.state import abstract_batch, abstract_state, model_shardings, state_shardings
from wroformer_jax.training.step import build_train_step
from wroformer_jax.training.throughput import step_flops


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device's memory."""

    state: int  # kept from step to step by a training run; the parameters of a forward pass
    teacher: int  # parameters of the frozen teacher, 0 without one
    inputs: int  # the batch, and the padding that XLA adds to arrays
    activations: int  # laid out by the program for its own use
    outputs: int  # results that do not reuse the memory of inputs
    host: int  # the host's memory, where the program keeps activations there
    available: int | None  # bytes that a program may use, None if unknown

    @property
    def peak(self) -> int:
        """Bytes of the device that are in use at once."""
        return self.state + self.teacher + self.inputs + self.activations + self.outputs


@dataclasses.dataclass(frozen=True)
class Plan:
    """The memory, communication, FLOPs and time that a program takes."""

    config: TrainingConfig
    teacher: ModelConfig | None
    inference: bool
    target: str
    device_kind: str
    mesh: dict[str, int]
    memory: Memory
    collectives: tuple[Collective, ...]
    part_samples: int  # of each example on each device; where time is cut, the last parts end in padding
    flops: int  # of all devices, without those that remat computes again
    attention_flops: int  # the part of them in scores of the time attention and in sums weighted by scores
    roofline: Roofline | None  # None if the devices' peak rates are not known
    compile_seconds: float
    time: TimeCount | None = None  # None if it was not asked for

    @property
    def num_devices(self) -> int:
        """Number of devices in the mesh."""
        return math.prod(self.mesh.values())

    @property
    def part_seconds(self) -> float:
        """Seconds of each example on each device."""
        return self.part_samples / self.config.model.sample_rate

    @property
    def num_parts(self) -> int:
        """Number of parts of time that are not all padding."""
        return -(-self.config.crop_samples // self.part_samples)

    @property
    def frames(self) -> int:
        """Number of STFT frames of an example."""
        return num_frames(self.config.model, self.config.crop_samples)

    @property
    def seconds(self) -> float:
        """Length of an example in whole hops."""
        return self.config.crop_samples / self.config.model.sample_rate

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan in plain JSON types."""
        model = self.config.model
        return {
            "program": "forward pass" if self.inference else "training step",
            "target": self.target,
            "device_kind": self.device_kind,
            "num_devices": self.num_devices,
            "mesh": self.mesh,
            "seconds": self.seconds,
            "samples": self.config.crop_samples,
            "frames": self.frames,
            "samples_per_device": self.part_samples,
            "batch_size": self.config.batch_size,
            "memory_bytes_per_device": {**dataclasses.asdict(self.memory), "peak": self.memory.peak},
            "collectives": [{**dataclasses.asdict(one), "sent": one.sent} for one in self.collectives],
            "sent_bytes_per_device": sent_bytes(self.collectives),
            "flops": self.flops,
            "attention_flops": self.attention_flops,
            "score_entries": scores(model, self.frames)._asdict(),
            "published_score_entries": published_scores()._asdict(),
            "roofline": self.roofline and _with_bracket(self.roofline),
            "time": self.time and self.time.to_dict(),
            "compile_seconds": self.compile_seconds,
            "config": self.config.to_dict(),
            "teacher": self.teacher and self.teacher.to_dict(),
        }


class Scores(NamedTuple):
    """Number of scores of one head of the time attention for one band, as the paper counts them."""

    own: int  # with the model's time mixer
    full: int  # with full attention

    @property
    def ratio(self) -> float:
        """Full attention's scores divided by the model's."""
        return self.full / self.own


def scores(config: ModelConfig, frames: int) -> Scores:
    """Returns the scores for a number of frames."""
    full = dataclasses.replace(config, time_mixer="full")
    return Scores(published_score_entries(config, frames), published_score_entries(full, frames))


def published_scores() -> Scores:
    """Returns the scores of the published model at 8 s; full attention has 44.5 times as many (arXiv 2510.25745)."""
    config = ModelConfig()
    return scores(config, num_frames(config, 8 * config.sample_rate))


class DoesNotFit(InputError):
    """A program takes more memory than a device has."""

    def __init__(self, needed: int | None, available: int | None) -> None:
        self.needed, self.available = needed, available
        super().__init__("the program does not fit into a device's memory")


def settle(config: TrainingConfig, target: Target, *, batch_size: int | None = None) -> tuple[TrainingConfig, Mesh]:
    """Returns the config with its batch size filled in, and the mesh.

    Args:
      config: of the run.
      target: the devices.
      batch_size: examples in a step; None for the least that the mesh and the accumulation take.

    Raises:
      InputError: the mesh does not fit the devices, or the batch does not fit the mesh.
    """
    mesh = make_mesh(config.mesh, target.devices)
    if batch_size is None:
        batch_size = num_example_shards(mesh) * config.optimizer.accumulate
    check_batch(batch_size, mesh, accumulate=config.optimizer.accumulate)
    model = settled(config.model, target.devices[0].platform)
    return dataclasses.replace(config, batch_size=batch_size, model=model), mesh


def teacher_of(config: TrainingConfig) -> ModelConfig | None:
    """Returns the settings of a full-attention teacher of the model's sizes, None if the run learns from no masks."""
    if not config.loss.weights.masks:
        return None
    teacher = dataclasses.replace(config.model, time_mixer="full", num_sinks=0, stream_dtype="float32")
    return forward_only(teacher, config.model.places_at_once)  # as initialisation.py has it


def plan(
    config: TrainingConfig,
    mesh: Mesh,
    target: Target,
    *,
    inference: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Plan:
    """Compiles a training step or a forward pass and returns its plan.

    The forward pass is that of `separate`, with its settings, for the whole mixtures of a step in one pass.

    Args:
      config: see `settle`; its data and checkpoints are not read.
      mesh: see `settle`.
      target: the devices of the mesh.
      inference: plan the forward pass.
      progress: count the time, too, which takes minutes, and tell this function how far the compiler is; None to leave
        it out. The target must be a TPU slice.

    Raises:
      DoesNotFit: the devices have too little memory.
      InputError: the compiler refuses the program for another reason.
    """
    if inference:
        config = dataclasses.replace(config, model=in_pieces(config.model))
    teacher = None if inference else teacher_of(config)
    program = program_of(config, mesh, inference=inference)
    samples = program.samples
    start = time.perf_counter()
    try:
        memory, text, counted = _compiled(config, program, target, inference=inference, progress=progress)
    except (jax.errors.JaxRuntimeError, CompilationError) as error:
        raise refusal(error, target) from error
    seconds = time.perf_counter() - start
    if target.memory is not None and memory.peak > target.memory:
        raise DoesNotFit(memory.peak, target.memory)
    found = tuple(collectives(text))
    device_kind = mesh.devices.flat[0].device_kind
    figures = known_hardware(device_kind)
    estimate = None
    if figures is not None and counted is not None:
        useful = useful_flops(config, teacher, inference=inference)
        of_device = {name: flops / mesh.size for name, flops in useful.items()}
        estimate = time_count(counted, sent_bytes(found) / figures.links, of_device, figures.bfloat16)
    work = _forward_work(config, samples) if inference else _training_work(config, teacher, memory.state, samples)
    forward = forward_flops(config.model, num_frames(config.model, config.crop_samples))
    passes = 1 if inference else 3
    return Plan(
        config=config,
        teacher=teacher,
        inference=inference,
        target=target.name,
        device_kind=device_kind,
        mesh={axis: int(size) for axis, size in mesh.shape.items()},
        memory=memory,
        collectives=found,
        part_samples=samples // num_time_parts(mesh),
        flops=config.batch_size * sum(forward.values()) if inference else step_flops(config, teacher),
        attention_flops=passes * config.batch_size * forward["time_scores"],
        roofline=figures and estimate_times(work, sent_bytes(found), figures, mesh.size),
        compile_seconds=seconds,
        time=estimate,
    )


def refusal(error: Exception, target: Target) -> InputError:
    """Returns the compiler's error as a DoesNotFit if it is about memory, else as an InputError with its last line."""
    if (numbers := out_of_memory(error)) is None:
        said = [line for line in str(error).splitlines() if "Error" in line] or [str(error)]
        return InputError(f"{target.name}: the program cannot be compiled: {said[-1].strip()}")
    return DoesNotFit(numbers[0], numbers[1] or target.memory)


def sent_bytes(found: Sequence[Collective]) -> float:
    """Returns the bytes that each device sends in a run of the program."""
    return float(sum(one.sent * one.executions for one in found))


def program_of(config: TrainingConfig, mesh: Mesh, *, inference: bool) -> Program:
    """Returns the training step or the forward pass, ready to be lowered."""
    return _forward(config, mesh) if inference else _training_step(config, mesh, teacher_of(config))


class Program(NamedTuple):
    """A function and the shapes that it is compiled for."""

    function: Any  # jitted
    arguments: tuple[Any, ...]  # shapes with shardings
    state: Any  # the arguments that are kept from step to step
    teacher: Any
    samples: int  # length of an example on all devices together, padding included


def _training_step(config: TrainingConfig, mesh: Mesh, teacher: ModelConfig | None) -> Program:
    """Returns the step as training/step.py jits it."""
    model = teacher and RoFormer(teacher)
    teacher_params = model and _abstract_params(model, mesh)
    state = abstract_state(config, mesh)
    train_step = build_train_step(config, mesh, model)

    def plan_step(state: Any, batch: Any, teacher_params: Any) -> Any:  # the name under which XLA dumps it
        return train_step(state, batch, teacher_params)

    step = jax.jit(
        plan_step,
        out_shardings=(state_shardings(config, mesh), replicated(mesh)),
        donate_argnums=0,
    )
    batch = abstract_batch(config, mesh)
    return Program(step, (state, batch, teacher_params), state, teacher_params, batch["mixture"].shape[-1])


def _forward(config: TrainingConfig, mesh: Mesh) -> Program:
    """Returns the model's forward pass on the mixtures of a batch."""
    params = _abstract_params(RoFormer(config.model), mesh)
    apply = spread_forward(config.model, mesh, config.crop_samples)
    shape = (config.batch_size, config.model.channels, padded_samples(apply.time, config.crop_samples))
    audio = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=batch_shardings(mesh)["mixture"])
    return Program(apply.function, (params, audio), params, None, shape[-1])


def _abstract_params(model: RoFormer, mesh: Mesh) -> Params:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_params(model),
        model_shardings(model, mesh),
    )


def _compiled(
    config: TrainingConfig,
    program: Program,
    target: Target,
    *,
    inference: bool,
    progress: Callable[[str], None] | None,
) -> tuple[Memory, str, list[Operation] | None]:
    """Returns the memory of a compiled program by purpose, the program's text, and its operations if asked for."""
    state, teacher = bytes_per_device(program.state), bytes_per_device(program.teacher)
    arguments = bytes_per_device(program.arguments)
    if target.is_topology:
        counted = None
        if progress is None:
            found = layout(config, target.name, inference=inference)
        else:
            read = functools.partial(_operations, device_kind=target.devices[0].device_kind)
            found, counted = layout_and_code(config, target.name, inference=inference, read=read, progress=progress)
        inputs = arguments - state - teacher
        memory = Memory(state, teacher, inputs, found.total - arguments, 0, found.host, target.memory)
        return memory, found.text, counted
    compiled = program.function.lower(*program.arguments).compile()
    analysis = compiled.memory_analysis()
    host = ("host_argument_size_in_bytes", "host_output_size_in_bytes", "host_temp_size_in_bytes")
    memory = Memory(
        state=state,
        teacher=teacher,
        inputs=analysis.argument_size_in_bytes - state - teacher,
        activations=analysis.temp_size_in_bytes,
        outputs=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        host=sum(getattr(analysis, name, 0) for name in host),
        available=target.memory,
    )
    return memory, compiled.as_text(), None


def _operations(folder: Path, device_kind: str) -> list[Operation]:
    """Returns the operations of the program in a folder of dumps, see `compiler_memory.layout_and_code`."""
    figures = known_hardware(device_kind)
    speed = figures and speed_of(device_kind, figures)
    assert speed, f"there are TPU slices of {device_kind}, but its rates are not known"
    return operations((folder / COMPILED).read_text(encoding="utf-8"), Dumps(folder).of, speed)


def _training_work(config: TrainingConfig, teacher: ModelConfig | None, state_bytes: int, samples: int) -> Work:
    """Returns the work of a step: passes of model and teacher, gradients, and the update of the state."""
    model, examples = config.model, config.batch_size
    count = _num_parameters(model)
    passes = training_passes(model, samples)
    work = forward_work(model, samples, examples, count * config.optimizer.accumulate, passes)
    work += Work(parameter_bytes=float(2 * 4 * count * config.optimizer.accumulate + 2 * state_bytes))
    if teacher is not None:
        window = min(config.teacher_samples, samples)
        windows = samples // window
        work += forward_work(teacher, window, examples * windows, _num_parameters(teacher))
    return work


def _forward_work(config: TrainingConfig, samples: int) -> Work:
    return forward_work(config.model, samples, config.batch_size, _num_parameters(config.model))


def _num_parameters(config: ModelConfig) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(RoFormer(config))))


def _with_bracket(estimate: Roofline) -> dict[str, Any]:
    bracket = {"overlapped_seconds": estimate.overlapped, "serial_seconds": estimate.serial}
    return {**dataclasses.asdict(estimate), **bracket, "bound": estimate.bound}
