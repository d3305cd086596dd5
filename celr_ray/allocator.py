"""Imported before pyarrow, by the command line only: Arrow's memory comes from jemalloc, which keeps what was freed.

Units of a batch job need the same memory again and again. Arrow's default, mimalloc, asks for huge pages, which the
kernel clears at the first touch; in a virtual machine whose host takes free ones away that is dear. jemalloc asks for
none, and told to keep what was freed, it does not fetch the same pages again: up to a quarter of pairing's CPU time
(benchmarks/README.md). Arrow reads these variables while it is loaded, so they cannot be set later. Workers of an
embedded Ray inherit them, `cluster.yaml` sets them on nodes, and whoever has set one keeps their own value. A program
that imports `celr_ray` as a library is left as it is.

`lg_extent_max_active_fit` lets freed memory of any size be cut for a smaller request. By default jemalloc takes new
memory for those below a 64th, and as nothing is given back here, benchmarks/scaling.py needed 8 GB at 3 million logs.
"""

import os
import sys

SETTINGS = {
    "ARROW_DEFAULT_MEMORY_POOL": "jemalloc",
    "JE_ARROW_MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1,background_thread:false,lg_extent_max_active_fit:20",
}

if sys.platform == "linux":  # Arrow's wheels for other systems have no jemalloc
    for _name, _value in SETTINGS.items():
        os.environ.setdefault(_name, _value)
