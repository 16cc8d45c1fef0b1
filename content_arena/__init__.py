__version__ = "0.1.0"

from content_arena.core.config import wait_briefly

wait_briefly()  # before torch is loaded: see nbs/01_core/40_config.ipynb
