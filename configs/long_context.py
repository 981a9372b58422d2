"""Fine-tuning on whole songs: configs/finetune_wsa.py with examples of four minutes, time cut over eight chips.

  python train.py --config=configs/long_context.py --config.data=gs://BUCKET/sets/musdb --workdir=gs://BUCKET/runs/long
  wroformer plan --config configs/long_context.py --topology v5e:2x4      # what it takes of each chip, without one

Each group of eight chips has one song; more chips, more songs. docs/long_context.md says what fits where. Everything is
as in finetune_wsa.py but for what stands here.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = runpy.run_path(str(Path(__file__).with_name("finetune_wsa.py")))["get_config"]()

    config.seconds = 240.0  # shorter songs are followed by silence
    config.mesh.seq = 8  # 32 s on each chip; the state is spread, too
    config.batch_size = 1  # songs per step, one for each group of eight chips: 4 on 32 chips

    # All but the residual stream, which is 92 KB per frame, is worked on piece by piece. If that is still too much:
    # model.remat = "offload" keeps the stream in the host's memory, model.blocks_per_save = 2 keeps half of it.
    config.model.places_at_once = 16_384  # frames x bands at a time; an 8 s crop is 48,060

    # Songs as they are: a mixture of stems from different songs has nothing to remember for four minutes.
    config.augment.remix = 0.0
    config.augment.mixup = ()
    config.loading.prefetch = 1  # a song of four minutes is 85 MB of mixture, and as much of each stem

    config.validation.chunk_seconds = 0.0  # whole songs in one pass, too
    config.steps = 4_000  # our choice: 16,000 minutes of songs for each group of chips
    config.validation.every = 200
    config.checkpoints.every = 100
    return config
