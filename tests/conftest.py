"""What must be set before the first import: without CUDA, Triton's kernels run in its interpreter."""

import os

import torch

if not torch.cuda.is_available():
    # Triton reads this when it decorates the kernels; set later it has no effect.
    os.environ.setdefault("TRITON_INTERPRET", "1")
