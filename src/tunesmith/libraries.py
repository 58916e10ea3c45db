"""What libraries below us say on their own account, kept from people who typed a command."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Silence what libraries will change one day, and which optional kernels they did not find.

    For programs: the command line and the processes that it starts. A Python user decides for his own process.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="(accelerate|peft|torch|transformers)")
    warnings.filterwarnings("ignore", message="Adapter name 'ref'", module="peft")  # TRL's name for its reference, which is inside PEFT's "prefix"
    for name in ("bitsandbytes", "lm_eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
