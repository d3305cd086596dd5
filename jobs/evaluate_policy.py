"""Estimate from logged decisions what a policy would have earned; the flags are those of `celr-ray evaluate-policy`.

On a cluster: ray job submit --working-dir . -- python jobs/evaluate_policy.py …
"""

import sys

from celr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate-policy", *sys.argv[1:]]))
