"""Offline learning of the Cortex: masked BC, CQL(H) and IQL for discrete actions, inside RLlib's new API stack.

Read in this order: `losses` (formulas), `columns` (what training reads), `feeding` (minibatches), `module` (networks),
`learner` (one gradient step), `base` and `algorithm` (configs, `train()`, checkpoints), `export` (to numpy).
"""
