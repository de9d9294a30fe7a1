"""How layers are computed: attention, FP8, low-rank matrices, and kernels for GPUs."""
