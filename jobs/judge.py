"""Judge the trajectories of a run with vLLM; the flags are those of `celr-ray judge`.

On a cluster: ray job submit --working-dir . -- python jobs/judge.py …
"""

import sys

from celr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["judge", *sys.argv[1:]]))
