"""Train a policy of the Cortex from logs; the flags are those of `celr-ray train-cortex`.

On a cluster: ray job submit --working-dir . -- python jobs/train_cortex.py …
"""

import sys

from celr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-cortex", *sys.argv[1:]]))
