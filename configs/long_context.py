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

    config.seconds = 240.0  # length of an example; songs that are shorter are followed by silence
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "seq": 8})  # 32 s a chip; the state is cut, too
    config.batch_size = 1  # songs a step: one for each group of eight chips, so 4 on 32 chips

    # Memory: everything but the residual stream, which is 92 KB a frame, is worked on piece by piece.
    config.model.places_at_once = 16_384  # frames x bands at a time; an 8 s crop is 48,060
    config.model.remat = "block"  # the residual stream is kept once a block; "offload" keeps it in the host's memory
    config.model.blocks_per_save = 1  # 2 or 3 keep it once every few blocks, and compute these again

    # The teacher hears windows of 8 s whatever the length. Where time is cut, a chip has whole windows.
    config.teacher_seconds = 8.0

    # Songs as they are: a mixture of stems from different songs has nothing to remember for four minutes.
    config.augment.remix = 0.0
    config.augment.mixup = ()
    config.prefetch = 1  # a song of four minutes is 85 MB of mixture, and as much of each stem

    config.validation_chunk_seconds = 0.0  # whole songs in one pass, too
    config.steps = 4_000  # our choice: 16,000 minutes of songs for each group of chips
    config.validate_every = 200
    config.checkpoint_every = 100
    return config
