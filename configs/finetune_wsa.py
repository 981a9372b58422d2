"""Fine-tuning with windowed sink attention: the recipe of arXiv 2510.25745, for one to hundreds of chips.

A published full-attention Mel-Band RoFormer gets windowed sink attention in place of its full time attention, and
learns to live with it: from the stems, and from the masks of the model that it was. The same command on every host:
  python train.py --config=configs/finetune_wsa.py --config.data=gs://BUCKET/sets/musdb --workdir=gs://BUCKET/runs/wsa

From the paper: the model's sizes, window 10, 8 sinks, 8 s, the full-attention checkpoint as start and as teacher,
reconstruction loss plus distillation of masks. It kept 92 % of the teacher's SDR (MUSDB18-HQ vocals, median 12.12 dB to
11.17 dB). Batch, steps, learning rate, weights of the losses, averaging and augmentation are our choices.
"""

from ml_collections import ConfigDict

from wroformer_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()

    # The model is the default one: the published windowed-sink model, 228 M parameters. All but its time mixer must be
    # as in `init`.
    config.model.dtype = "bfloat16"  # of matrix products: what TPUs and GPUs are fast at

    # The checkpoint of the paper, downloaded by its name. Any other that `wroformer separate` takes will do, if the
    # model is made to fit it.
    config.init = "kim-melband"  # full attention: the sinks are drawn (normal, standard deviation 0.02)
    config.teacher = "kim-melband"
    config.loss.weights.masks = 1.0  # our choice: of the order of the other losses, since masks are of the order of 1

    config.data = (
        "sets/musdb18hq"  # a set of `wroformer prepare`; without one the run is refused before it costs anything
    )
    config.loading.workers = 8  # a TPU host has the cores
    config.augment.remix = 0.5  # half of the mixtures stay as they are: the teacher shows more where the music is music
    config.augment.silence = 0.05  # silent targets: the paper finds small windows weak in silence
    config.augment.skip_silence = 0.9  # some silent crops stay, for the same reason

    # A parameter takes 16 bytes (weight, average, AdamW's moments), 3.7 GB in all, the teacher 0.9 GB more. Where that
    # is too much, --config.mesh.data=1 --config.mesh.fsdp=-1 spreads them over all devices.
    config.steps = 50_000  # 800,000 crops, 1,800 hours of audio
    config.batch_size = 16  # a multiple of the number of devices; with optimizer.accumulate = 4 it fits 4 chips
    config.optimizer.learning_rate = 2e-5  # weights that are good already move little
    config.optimizer.b2 = 0.999  # squared gradients are averaged over long: batches are small
    config.optimizer.weight_decay = 0.0  # nothing pulls good weights to zero
    config.optimizer.learning_rate_scales = (("sink_tokens", 10.0),)  # the sinks are new and start from noise
    # To train sinks and time attention alone: optimizer.freeze = ("band_split", "blocks/freq", "mask_estimator")
    return config
