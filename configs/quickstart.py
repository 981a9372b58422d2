"""A first training run: a small windowed-sink Mel-Band RoFormer learns to separate a synthetic voice from its band.

Seven to ten minutes on two CPU cores, nothing to download:
  python train.py --config=configs/quickstart.py --workdir=runs/quickstart
Any field can be set on the command line: --config.steps=2000 --config.model.dim=64

This file says what differs from the defaults; wroformer_jax/config/ explains every field (training.py and groups.py
those of a run, model.py those of the model, augmentation.py the changes of training examples).
"""

from ml_collections import ConfigDict

from wroformer_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()

    # The model: 0.9 M parameters, about 1/240 of the published size, so that a CPU trains it in minutes.
    model = config.model
    model.num_bands = 24
    model.stft_n_fft = model.stft_win_length = 1024  # samples: bands of few bins are learnt quickly (published: 2048)
    model.stft_hop_length = 512  # samples: half a window
    model.dim, model.depth, model.heads, model.dim_head = 64, 1, 2, 16
    model.dim_feed_forward, model.mask_layers, model.dim_mask = 256, 2, 64
    model.remat = "none"  # memory is no concern at this size, and recomputing costs time

    # Songs are synthesised in the workdir; --config.data=sets/NAME trains on a set of `wroformer prepare` instead.
    config.synthetic.song_seconds = 10.0  # 64 songs are then made in seconds
    config.validation.songs = 8
    config.validation.chunk_seconds = 0.0  # whole songs in one pass: they are short
    config.seconds = 1.0  # short crops, so that a step takes half a second
    config.loading.workers = 1  # the other core trains

    # The changes that help a small model for 900 steps; the others would teach it little.
    augment = config.augment
    augment.remix = 0.5  # half of the mixtures are real ones, with voice and band in time
    augment.gain_range = (0.63, 1.58)  # 4 dB down and up
    augment.mixup = ()
    augment.channel_swap = augment.polarity = augment.time_inversion = augment.skip_silence = 0.0

    config.steps = 900
    config.batch_size = 8
    config.optimizer.learning_rate = 2e-3  # small models take large steps
    config.optimizer.warmup = 0.05  # 45 steps
    config.optimizer.ema = 0.0  # a run as short as this gains nothing from an average
    config.loss.hop = 441  # samples; the public recipe's 147 costs three times as much

    config.logging.every = 10
    config.validation.every = 100
    config.checkpoints.every = 100
    config.checkpoints.keep = 2
    return config
