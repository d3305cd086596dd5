"""Train the difficulty estimate from the runs of the cheapest tier; the flags are those of `celr-ray train-difficulty`.

On a cluster: ray job submit --working-dir . -- python jobs/train_difficulty.py …
"""

import sys

from celr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-difficulty", *sys.argv[1:]]))
