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


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the parameters, the crops and the augmentation: the same seed gives the same numbers

    # The model: the published size, 228 M parameters.
    model = config.model = ConfigDict()
    model.band_scheme = "mel"  # overlapping bands, even on the mel scale
    model.num_bands = 60
    model.stems = ("vocals",)  # what is estimated; the rest is mixture - vocals
    model.channels = 2  # stereo
    model.sample_rate = 44100  # Hz
    model.stft_n_fft = 2048  # samples
    model.stft_hop_length = 441  # samples: 10 ms
    model.stft_win_length = 2048  # samples
    model.dim = 384  # width of the residual stream
    model.depth = 6  # blocks: a time transformer, then a frequency transformer
    model.heads = 8  # of the attention
    model.dim_head = 64  # width of a head
    model.dim_feed_forward = 1536  # hidden width of the feed-forward layers
    model.mask_layers = 3  # Linear layers of the mask estimator
    model.dim_mask = 1536  # its hidden width
    model.time_mixer = "full"  # every frame sees every frame
    model.num_sinks = 0  # sinks come with windows
    model.zero_dc = True  # bin 0 of the result is zero, as it will be in the windowed-sink model
    model.dtype = "bfloat16"  # of matrix products; parameters, norms, softmax, STFT and optimiser stay in float32
    model.remat = "block"  # memory is what is short: only the residual stream between blocks is kept for the gradient

    # Songs: a set made by `wroformer prepare`, here or in a bucket. Without it the run is refused before it costs
    # anything; "" would synthesise songs, on which it is of no use.
    config.data = "sets/musdb18hq"
    config.train_songs = 64  # number of songs, and
    config.song_seconds = 30.0  # length of each, if they are synthesised
    config.validation_songs = 14  # whole songs, never trained on: the first of the set's validation or test songs
    config.validation_chunk_seconds = 8.0  # what the model hears at once of them: what it was trained on

    # Training examples: random crops of all stems, changed at random, and their sum, the mixture. The public recipes'
    # values but for `silence`, see wroformer_jax/data/augment.py.
    config.seconds = 8.0  # length of a crop: full attention's cost grows with its square
    config.stems = ()  # what the mixture is made of; () is all stems of the set
    augment = config.augment = ConfigDict()
    augment.remix = 1.0  # probability that stems come from different songs: more mixtures than there are songs
    augment.gain = 1.0  # probability that a stem is made louder or softer
    augment.gain_range = (0.5, 1.5)  # the least and the largest factor: 6 dB down, 3.5 dB up
    augment.mixup = (0.2, 0.02)  # probabilities that one, and one more, crop of the same stem is mixed in
    augment.mixup_range = (0.5, 1.5)  # factors of each of them
    augment.channel_swap = 0.5  # probability of left and right changing places,
    augment.polarity = 0.5  # of a change of sign,
    augment.time_inversion = 0.1  # of playing backwards,
    augment.silence = 0.02  # that the target is silent (public: 0), so that it learns to leave silence alone
    augment.skip_silence = 1.0  # that a crop without sound is drawn again
    config.workers = 8  # processes that load, on each host; a TPU host has the cores
    config.prefetch = 4  # batches that each keeps ready

    # Where the weights start: at random, and nobody teaches them.
    config.init = ""
    config.teacher = ""
    config.teacher_seconds = 8.0  # of no meaning without a teacher

    # Devices: copies of the model, parts of its parameters and optimiser state, parts of time; -1 is the rest of them.
    # Parameters, their average and AdamW's moments are 16 bytes a parameter, 3.7 GB. Where that is too much,
    # --config.mesh.data=1 --config.mesh.fsdp=-1 spreads them over all devices; each step gathers the parameters for its
    # own length.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "seq": 1})

    # Optimisation.
    config.steps = 500_000  # optimiser steps: 16 M crops, 4 years of audio
    config.batch_size = 32  # crops a step, on all devices together, so a multiple of their number
    config.accumulate = 1  # parts that a batch is cut into, one after the other; 2 where 16 chips are to do for 32
    config.learning_rate = 2e-4  # of AdamW, at its highest
    config.schedule = "cosine"  # down to zero at the last step, or "constant" for a run whose end is open
    config.warmup = 0.01  # part of the steps in which the learning rate rises: 5,000 steps
    config.b1 = 0.9  # how much of AdamW's mean of gradients is kept in a step
    config.b2 = 0.99  # and of its mean of their squares: short, as is usual with transformers from scratch
    config.weight_decay = 0.01  # of the matrices only, times the learning rate
    config.clip_norm = 1.0  # global norm that a gradient is scaled down to
    config.ema = 0.9995  # how much of the moving average of the weights, which is what is kept, stays in a step
    config.freeze = ()  # patterns (regular expressions) of parameters that stay as they are
    config.learning_rate_scales = ()  # (pattern, factor) pairs, for parameters that learn faster or slower
    config.max_skipped = 10  # steps in a row that may be skipped because their loss or gradient is not finite
    config.loss_weights = ConfigDict({"l1": 1.0, "stft": 1.0, "masks": 0.0})  # masks: against a teacher's
    config.loss_windows = (4096, 2048, 1024, 512, 256)  # samples, of the STFTs in the loss: the public recipe's
    config.loss_hop = 147  # samples: the public recipe's

    # What is written when, in steps.
    config.log_every = 100  # loss, gradient norm, learning rate: means since the last log
    config.validate_every = 5000  # SDR on the unseen songs
    config.checkpoint_every = 1000  # a multiple of log_every; at most this much is lost in a crash
    config.keep_checkpoints = 3  # the newest ones stay
    config.profile_steps = ()  # the first and the last step of a trace for xprof in WORKDIR/profile; () is none
    return config
