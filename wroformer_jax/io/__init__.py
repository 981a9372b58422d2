"""Reads and writes files, folders, buckets and audio. This room knows no model."""

from wroformer_jax.io.audio import AudioInfo, inspect, read_blocks, read_whole, resample_blocks
from wroformer_jax.io.audio_writer import ENCODINGS, Encoding, SongWriter
from wroformer_jax.io.buckets import Place, is_remote, place
from wroformer_jax.io.files import disk_errors_named, locked, replacing
from wroformer_jax.io.folders import audio_files, by_stem, files_state

__all__ = [
    "ENCODINGS",
    "AudioInfo",
    "Encoding",
    "Place",
    "SongWriter",
    "audio_files",
    "by_stem",
    "disk_errors_named",
    "files_state",
    "inspect",
    "is_remote",
    "locked",
    "place",
    "read_blocks",
    "read_whole",
    "replacing",
    "resample_blocks",
]
