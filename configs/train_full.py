"""A full-attention Mel-Band RoFormer of the published size, from scratch: a teacher for configs/finetune_wsa.py.

For stems or rates that no published checkpoint has; where one will do, start from that, which saves 500,000 steps. The
same command on every host:
  python train.py --config=configs/train_full.py --config.data=gs://BUCKET/sets/mine --workdir=gs://BUCKET/runs/full
and then, to make a windowed-sink model of it:
  python train.py --config=configs/finetune_wsa.py --config.data=gs://BUCKET/sets/mine --workdir=gs://BUCKET/runs/wsa \
    --config.init=gs://BUCKET/runs/full --config.teacher=gs://BUCKET/runs/full

The model and the loss are the published ones (arXiv 2310.01809, the public code bases); the rest is our choice.
"""

from ml_collections import ConfigDict

from wroformer_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()

    # The model: the published size, 228 M parameters.
    config.model.time_mixer = "full"  # every frame sees every frame
    config.model.num_sinks = 0  # sinks come with windows
    config.model.dtype = "bfloat16"  # of matrix products: what TPUs and GPUs are fast at

    config.data = (
        "sets/musdb18hq"  # a set of `wroformer prepare`; without one the run is refused before it costs anything
    )
    config.loading.workers = 8  # a TPU host has the cores
    config.augment.silence = 0.02  # silent targets (public recipes: 0): the model learns to leave silence alone

    # A parameter takes 16 bytes (weight, average, AdamW's moments), 3.7 GB in all. Where that is too much,
    # --config.mesh.data=1 --config.mesh.fsdp=-1 spreads them over all devices.
    config.seconds = 8.0  # the cost of full attention grows with the square
    config.steps = 500_000  # 16 M crops, 4 years of audio
    config.batch_size = 32  # a multiple of the number of devices; with optimizer.accumulate = 2 it fits 16 chips
    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup = 0.01  # 5,000 steps
    config.optimizer.ema = 0.9995  # the average, which is what is kept, is over some 2,000 steps

    config.logging.every = 100  # a run of weeks needs fewer lines
    config.validation.every = 5000
    config.checkpoints.every = 1000
    return config
