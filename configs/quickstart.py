"""A first training run: a small windowed-sink Mel-Band RoFormer learns to lift a synthetic voice out of its band.

About 7 minutes on two CPU cores, nothing to download:
  python train.py --config=configs/quickstart.py --workdir=runs/quickstart
Any field can be set on the command line: --config.steps=2000 --config.model.dim=64
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the parameters, the songs and the crops: the same seed gives the same numbers

    # The model, see wroformer_jax.ModelConfig; the published one is some 200 times as large.
    model = config.model = ConfigDict()
    model.band_scheme = "mel"  # overlapping bands, even on the mel scale
    model.num_bands = 24
    model.stems = ("vocals",)  # what is estimated; the rest is mixture - vocals
    model.channels = 2  # stereo
    model.sample_rate = 44100  # Hz
    model.stft_n_fft = 1024  # samples: few bins a band are quickly learnt; published models take 2048
    model.stft_hop_length = 512  # samples
    model.stft_win_length = 1024  # samples
    model.dim = 64  # width of the residual stream
    model.depth = 1  # blocks: a time transformer, then a frequency transformer
    model.heads = 2  # of the attention
    model.dim_head = 16  # width of a head
    model.dim_feed_forward = 256  # hidden width of the feed-forward layers
    model.mask_layers = 2  # Linear layers of the mask estimator
    model.dim_mask = 64  # its hidden width
    model.time_mixer = "windowed_sink"
    model.window = 10  # frames that a frame sees: 5 on each side
    model.num_sinks = 8  # learned tokens that see, and are seen by, every frame
    model.remat = "none"  # memory is no concern at this size, and recomputing costs time; "block" keeps the residual
    # stream between blocks alone, "offload" keeps that in the host's memory, "dots" keeps all products
    model.blocks_per_save = 1  # with "block" and "offload": blocks between two places where the stream is kept
    model.places_at_once = 0  # frames x bands that are worked on at a time; 0: all at once
    model.stream_dtype = "float32"  # of the residual stream between layers

    # Songs. Without a set made by `wroformer prepare`, they are synthesised (wroformer_jax/data/synthetic.py) and kept
    # in the workdir.
    config.data = ""  # path of a set, local or gs://
    config.train_songs = 64  # synthesised songs to train on
    config.song_seconds = 10.0  # length of each
    config.validation_songs = 8  # whole songs, never trained on; with a set, the first of its validation or test songs
    config.validation_chunk_seconds = 0.0  # what the model hears at once of them; 0 is whole songs

    # Training examples: random crops of all stems, changed at random, and their sum, the mixture. See
    # wroformer_jax/data/augment.py for what there is and for the values of the public recipes.
    config.seconds = 1.0  # length of a crop
    config.stems = ()  # what the mixture is made of; () is all stems of the set
    augment = config.augment = ConfigDict()
    augment.remix = 0.5  # probability that stems come from different songs; 1.0 where songs have a single stem each
    augment.gain = 1.0  # probability that a stem is made louder or softer
    augment.gain_range = (0.63, 1.58)  # the least and the largest factor: 4 dB down and up
    augment.mixup = ()  # probabilities that one, and one more, crop of the same stem is mixed in
    augment.mixup_range = (0.5, 1.5)  # factors of each of them
    augment.channel_swap = 0.0  # probabilities of left and right changing places, of a change of sign,
    augment.polarity = 0.0  # which teach a small model little that it would need
    augment.time_inversion = 0.0  # of playing backwards
    augment.silence = 0.0  # that the target is silent
    augment.skip_silence = 0.0  # that a crop without sound is drawn again
    config.workers = 1  # processes that load; 0 loads in the training process
    config.prefetch = 4  # batches that each keeps ready

    # Where the weights start. Any checkpoint that `wroformer separate` takes; of a full-attention one, windowed sinks
    # are made as model.time_mixer, window and num_sinks say.
    config.init = ""  # random weights
    config.teacher = ""  # a frozen model whose masks are learnt from, see loss_weights.masks
    config.teacher_seconds = 8.0  # what the teacher hears at once

    # Devices: copies of the model, parts of its parameters and optimiser state, parts of time; -1 is the rest of them.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "seq": 1})

    # Optimisation.
    config.steps = 900  # optimiser steps
    config.batch_size = 8  # crops a step, on all devices together
    config.accumulate = 1  # parts that a batch is cut into, one after the other, to save memory
    config.learning_rate = 2e-3  # of AdamW, at its highest
    config.schedule = "cosine"  # down to zero at the last step, or "constant"
    config.warmup = 0.05  # part of the steps in which the learning rate rises
    config.b1 = 0.9  # how much of AdamW's mean of gradients is kept in a step
    config.b2 = 0.99  # and of its mean of their squares
    config.weight_decay = 0.01  # of the matrices only, times the learning rate
    config.clip_norm = 1.0  # global norm that a gradient is scaled down to
    config.ema = 0.0  # how much of the moving average of the weights is kept in a step; 0 is no average
    config.freeze = ()  # patterns (regular expressions) of parameters that stay as they are
    config.learning_rate_scales = ()  # (pattern, factor) pairs, for parameters that learn faster or slower
    config.max_skipped = 10  # steps in a row that may be skipped because their loss or gradient is not finite
    config.loss_weights = ConfigDict({"l1": 1.0, "stft": 1.0, "masks": 0.0})  # masks: against the teacher's
    config.loss_windows = (4096, 2048, 1024, 512, 256)  # samples, of the STFTs in the loss
    config.loss_hop = 441  # samples; the public recipe's is 147, which costs three times as much

    # What is written when, in steps.
    config.log_every = 10  # loss, gradient norm, learning rate: means since the last log
    config.validate_every = 100  # SDR on the unseen songs
    config.checkpoint_every = 100  # a multiple of log_every; at most this much is lost in a crash
    config.keep_checkpoints = 2  # the newest ones stay
    config.profile_steps = ()  # the first and the last step of a trace for xprof in WORKDIR/profile; () is none
    return config
