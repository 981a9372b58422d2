"""Fine-tuning with windowed sink attention: the recipe of arXiv 2510.25745, for one to hundreds of chips.

A published full-attention Mel-Band RoFormer gets windowed sink attention in place of its full time attention, and
learns to live with it: from the stems, and from the masks of the model that it was. The same command on every host:
  python train.py --config=configs/finetune_wsa.py --config.data=gs://BUCKET/sets/musdb --workdir=gs://BUCKET/runs/wsa

From the paper: the model's sizes, window 10, 8 sinks, 8 s, the full-attention checkpoint as start and as teacher,
reconstruction loss plus distillation of masks. It kept 92 % of the teacher's SDR (MUSDB18-HQ vocals, median 12.12 dB to
11.17 dB). Batch, steps, learning rate, weights of the losses, averaging and augmentation are our choices, marked so.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of the sinks, the crops and the augmentation: the same seed gives the same numbers

    # The model: the published size, 228 M parameters. All but the time mixer must be as in `init`.
    model = config.model = ConfigDict()
    model.band_scheme = "mel"  # overlapping bands, even on the mel scale
    model.num_bands = 60
    model.stems = ("vocals",)  # what is estimated; the rest is mixture - vocals
    model.channels = 2  # stereo
    model.sample_rate = 44100  # Hz
    model.stft_n_fft = 2048  # samples
    model.stft_hop_length = 441  # samples: 10 ms, so that a window of 10 is a frame's surroundings of 50 ms each way
    model.stft_win_length = 2048  # samples
    model.dim = 384  # width of the residual stream
    model.depth = 6  # blocks: a time transformer, then a frequency transformer
    model.heads = 8  # of the attention
    model.dim_head = 64  # width of a head
    model.dim_feed_forward = 1536  # hidden width of the feed-forward layers
    model.mask_layers = 3  # Linear layers of the mask estimator
    model.dim_mask = 1536  # its hidden width
    model.time_mixer = "windowed_sink"
    model.window = 10  # frames that a frame sees: 5 on each side
    model.num_sinks = 8  # learned tokens that see, and are seen by, every frame
    model.dtype = "bfloat16"  # of matrix products; parameters, norms, softmax, STFT and optimiser stay in float32
    model.remat = "block"  # memory is what is short: only the residual stream between blocks is kept for the gradient

    # Songs: a set made by `wroformer prepare`, here or in a bucket. Without it the run is refused before it costs
    # anything; "" would synthesise songs, on which it is of no use.
    config.data = "sets/musdb18hq"
    config.train_songs = 64  # number of songs, and
    config.song_seconds = 30.0  # length of each, if they are synthesised
    config.validation_songs = 14  # whole songs, never trained on: the first of the set's validation or test songs
    config.validation_chunk_seconds = 8.0  # what the model hears at once of them: what it was trained on

    # Training examples: random crops of all stems, changed at random, and their sum, the mixture.
    config.seconds = 8.0  # length of a crop, the paper's and the checkpoint's
    config.stems = ()  # what the mixture is made of; () is all stems of the set
    # Our choice: the public recipes' values (wroformer_jax/data/augment.py) but for two.
    augment = config.augment = ConfigDict()
    augment.remix = 0.5  # probability that stems come from different songs. Half stay as they are (public: 1.0): there
    # is more to learn from the teacher where the music is music
    augment.gain = 1.0  # probability that a stem is made louder or softer
    augment.gain_range = (0.5, 1.5)  # the least and the largest factor: 6 dB down, 3.5 dB up
    augment.mixup = (0.2, 0.02)  # probabilities that one, and one more, crop of the same stem is mixed in
    augment.mixup_range = (0.5, 1.5)  # factors of each of them
    augment.channel_swap = 0.5  # probability of left and right changing places,
    augment.polarity = 0.5  # of a change of sign,
    augment.time_inversion = 0.1  # of playing backwards,
    augment.silence = 0.05  # that the target is silent (public: 0). The paper finds small windows weak in silence
    augment.skip_silence = 0.9  # that a crop without sound is drawn again: some stay, for the same reason
    config.workers = 8  # processes that load, on each host; a TPU host has the cores
    config.prefetch = 4  # batches that each keeps ready

    # Where the weights start, and whose masks they are held to: the checkpoint of the paper, downloaded by its name.
    # Any other that `wroformer separate` takes will do, if the model above is made to fit it.
    config.init = "kim-melband"  # has full attention: sinks are drawn (normal, standard deviation 0.02)
    config.teacher = "kim-melband"  # frozen, computes in model.dtype
    config.teacher_seconds = 8.0  # what it hears at once, whatever `seconds` is: its cost grows with the square

    # Devices: copies of the model, parts of its parameters and optimiser state, parts of time; -1 is the rest of them.
    # Parameters, their average and AdamW's moments are 16 bytes a parameter, 3.7 GB, the teacher 0.9 GB more. Where
    # that is too much, --config.mesh.data=1 --config.mesh.fsdp=-1 spreads them over all devices; each step gathers the
    # parameters, and the teacher's, for its own length.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "seq": 1})

    # Optimisation: our choice throughout.
    config.steps = 50_000  # optimiser steps: 800,000 crops, 1,800 hours of audio
    config.batch_size = 16  # crops a step, on all devices together, so a multiple of their number
    config.accumulate = 1  # parts that a batch is cut into, one after the other; 4 where 4 chips are to do for 16
    config.learning_rate = 2e-5  # of AdamW, at its highest: weights that are good already move little
    config.schedule = "cosine"  # down to zero at the last step, or "constant" for a run whose end is open
    config.warmup = 0.02  # part of the steps in which the learning rate rises: AdamW's means are young
    config.b1 = 0.9  # how much of AdamW's mean of gradients is kept in a step
    config.b2 = 0.999  # and of its mean of their squares
    config.weight_decay = 0.0  # nothing pulls good weights to zero
    config.clip_norm = 1.0  # global norm that a gradient is scaled down to
    config.ema = 0.999  # how much of the moving average of the weights, which is what is kept, stays in a step
    # Patterns (regular expressions) of parameters that stay as they are. To train the sinks and time attention alone:
    # freeze = ("band_split", "blocks/freq", "mask_estimator")
    config.freeze = ()
    config.learning_rate_scales = (("sink_tokens", 10.0),)  # (pattern, factor): the sinks are new and start from noise
    config.max_skipped = 10  # steps in a row that may be skipped because their loss or gradient is not finite
    # L1 and STFT as in the public recipe. Masks: the paper has such a loss, its weight is our choice; at 1.0 it is of
    # the order of the others, since masks are of the order of 1.
    config.loss_weights = ConfigDict({"l1": 1.0, "stft": 1.0, "masks": 1.0})
    config.loss_windows = (4096, 2048, 1024, 512, 256)  # samples, of the STFTs in the loss: the public recipe's
    config.loss_hop = 147  # samples: the public recipe's

    # What is written when, in steps.
    config.log_every = 50  # loss, gradient norm, learning rate: means since the last log
    config.validate_every = 1000  # SDR on the unseen songs
    config.checkpoint_every = 500  # a multiple of log_every; at most this much is lost in a crash
    config.keep_checkpoints = 3  # the newest ones stay
    config.profile_steps = ()  # the first and the last step of a trace for xprof in WORKDIR/profile; () is none
    return config
