"""Imported before pyarrow, by the command line only: Arrow's allocator keeps the memory that it was given.

Units of a batch job need the same memory again and again. By default mimalloc, Arrow's allocator, hands freed memory
back to the system after 10 ms and gets it back zeroed, page by page: measured, a tenth of the time of pairing at
3 million logs. Peak memory is the same. mimalloc reads the setting while it is loaded, so it cannot come later; workers
of an embedded Ray inherit it, `cluster.yaml` sets it on nodes, and whoever sets the variable keeps their own value.
A program that imports `celr_ray` as a library is left as it is.
"""

import os

os.environ.setdefault("MIMALLOC_PURGE_DELAY", "-1")
