"""Which methods the front doors take where none is named. Plain words; this module imports nothing."""

__all__ = ["DEFAULT_METHOD", "NOISE_METHOD"]

DEFAULT_METHOD = "NAYER"  # of `dfkd.distill` and of the command line
NOISE_METHOD = "NoiseInput"  # the lower bound that `dfkd demo` compares with
