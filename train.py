#!/usr/bin/env python3
"""Train and evaluate an experiment: ``python train.py hparams/demo_ib.yaml [--key=value ...]``.

Examples
    python train.py hparams/demo_ib.yaml
    python train.py hparams/emodb_ib.yaml --data_folder=PATH --fold=03
    python train.py hparams/iemocap_ib.yaml --data_folder=PATH --dry_run=True
    python train.py hparams/demo_ib.yaml --overlay=hparams/overlays/no_bottleneck.yaml
    torchrun --nproc_per_node=4 train.py hparams/iemocap_ib.yaml --data_folder=PATH

A dataset or a method never copies this file: what runs is named in the YAML (keys ``requires``, ``prepare``,
``folds`` and ``run``).
"""

import sys

from speechbrain_emo.experiment import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
