"""Songs that are synthesised, for a first run and for tests."""

from wroformer_jax.data.synthetic.song import synthesise_song

__all__ = ["synthesise_song"]
