"""The names of stems that have a meaning for the package."""

from __future__ import annotations

MIXTURE = "mixture"  # stored beside the stems of a song, but not one of them
VOCALS = "vocals"
INSTRUMENTAL = "instrumental"  # everything except the vocals: their sum, where no stem has this name
SUMS = (INSTRUMENTAL, "accompaniment")  # names of files that are the sum of other stems

# Usual names of stems, by which a folder per stem is distinguished from a folder per song.
STEM_NAMES = {
    *("vocals", "vocal", "voice", "lead_vocals", "lead-vocals", "backing_vocals", "backing-vocals", "choir"),
    *("drums", "drum", "kick", "snare", "toms", "hihat", "hi-hat", "hh", "cymbals", "ride", "crash", "percussion"),
    *("bass", "guitar", "guitars", "acoustic_guitar", "electric_guitar", "piano", "keys", "keyboard", "keyboards"),
    *("synth", "organ", "strings", "brass", "wind", "winds", "other", "others"),
    *("instrumental", "accompaniment", "mixture"),
    *("speech", "dialog", "dialogue", "music", "effect", "effects", "sfx", "noise"),
}

SYNTHETIC_STEMS = (VOCALS, "drums", "bass", "other")
