"""bpexp: experiments on the challenges of backpropagation."""

import sys
from pathlib import Path

# Hydra finds launchers and sweepers in the namespace package `hydra_plugins` alone, on sys.path.
_PLUGINS = str(Path(__file__).parent / "sweep")
if _PLUGINS not in sys.path:
    sys.path.append(_PLUGINS)
