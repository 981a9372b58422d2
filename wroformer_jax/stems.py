"""Names of stems."""

from __future__ import annotations

MIXTURE = "mixture"  # stored like a stem, but none


VOCALS = "vocals"


INSTRUMENTAL = "instrumental"  # all but the vocals; their sum where no stem has this name


SUMS = (INSTRUMENTAL, "accompaniment")  # names of files that are the sum of other stems


# How stems are usually called: what tells a folder for each stem from a folder for each song.
STEM_NAMES = {
    *("vocals", "vocal", "voice", "lead_vocals", "lead-vocals", "backing_vocals", "backing-vocals", "choir"),
    *("drums", "drum", "kick", "snare", "toms", "hihat", "hi-hat", "hh", "cymbals", "ride", "crash", "percussion"),
    *("bass", "guitar", "guitars", "acoustic_guitar", "electric_guitar", "piano", "keys", "keyboard", "keyboards"),
    *("synth", "organ", "strings", "brass", "wind", "winds", "other", "others"),
    *("instrumental", "accompaniment", "mixture"),
    *("speech", "dialog", "dialogue", "music", "effect", "effects", "sfx", "noise"),
}


SYNTHETIC_STEMS = ("vocals", "drums", "bass", "other")
