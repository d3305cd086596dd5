"""Write logs, or the trajectories of a run, as ATIF files; the flags are those of `celr-ray convert`.

On a cluster: ray job submit --working-dir . -- python jobs/convert.py …
"""

import sys

from celr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
