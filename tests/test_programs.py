"""The programs: what goes wrong is said at once, and no way of stopping them changes a number."""

import contextlib
import functools
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import config_dict
from test_train import fit, given, rich, same_bits

from configs import digits
from configs.ablations import first
from experiments import cli
from tinyattn import config, records, sweep, train
from tinyattn.checkpoint import Checkpoints
from tinyattn.train import _loop

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.py"))
TABLE = """
from configs import digits
from tinyattn.config import override
from tinyattn.weights import spec

def get_config(arg=None):
    return override(digits.get_config(arg), {
        "model.patch": 4, "model.width": 8, "model.ffn_width": 8, "task.noise": 0.1,
        "train.steps": 240, "train.batch_size": 16, "train.eval_every": 10,
        "train.steps_per_dispatch": 5, "train.patience": 9, "train.ema_decay": 0.9,
        "optim.learning_rate": 1e-4, "checkpoint.every_seconds": 0.0,
    })

def rows():
    yield "dense", {}
    yield "shared", {"weights": (spec("share"),)}
"""

