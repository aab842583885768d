"""Variables of the environment by which libraries would change a result.

They come from shell profiles, `.env` files and launchers of other projects. What changes a result
stands in params.yaml, so they are removed before a library reads them. Which machine, devices and
threads do the work remains the environment's choice.
"""

import os

from stages.runtime.progress import log

# Of accelerate. Where `accelerate launch` or torchrun has started this process, they hold what the
# machine's accelerate config says.
LAUNCHER_PREFIXES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_")
# The number of a process among those of a launcher, which find each other by $MASTER_ADDR. Without
# it they are left over, and torch would end.
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
PREFIXES = (
    # Compiled code: fast math, fusion, autotuning, or no compilation at all.
    "TORCHDYNAMO_",
    "TORCHINDUCTOR_",
    "TORCH_COMPILE_",
    "PYTORCH_TENSOREXPR",
    "PYTORCH_TUNABLEOP_",
    # Arguments of Lightning's Trainer that are not given, such as its precision.
    "PL_TRAINER_",
    # Attention, interpolation and architectures of timm.
    "TIMM_",
)
NAMES = (
    # Kernels of torch, on GPUs and CPUs.
    "ATEN_CPU_CAPABILITY",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_SUM_INNER_TREE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "TORCH_CUDNN_USE_HEURISTIC_MODE_B",
    "TORCH_CUDNN_V8_API_DISABLED",
    "TORCH_DISABLE_NATIVE_AOT",
    "TORCH_DISABLE_NATIVE_JIT",
    "TORCH_LINALG_PREFER_CUSOLVER",
    "TORCH_LINEAR_FLATTEN_3D",
    "TORCH_MKLDNN_MATMUL_MIN_DIM",
    "TORCH_MKLDNN_MATMUL_MIN_SIZE",
    # Instructions and bfloat16 math of oneDNN and MKL.
    "DNNL_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_DISABLE_FAST_MM",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA",
    # Attention of diffusers and transformers, and kernels that are downloaded.
    "DIFFUSERS_ATTN_BACKEND",
    "TRANSFORMERS_SDPA_FORCE_GQA",
    "USE_HUB_KERNELS",
    # The seed of Lightning where none is given.
    "PL_GLOBAL_SEED",
)
# The device, logs, caches and processes that compile.
KEPT = {
    "ACCELERATE_CPU_AFFINITY",
    "ACCELERATE_DEBUG_MODE",
    "ACCELERATE_LOG_LEVEL",
    "ACCELERATE_TORCH_DEVICE",
    "ACCELERATE_USE_CPU",
    "TIMM_DATASET_MAX_RETRIES",
    "TORCHDYNAMO_VERBOSE",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCHINDUCTOR_COMPILE_THREADS",
    "TORCHINDUCTOR_WORKER_START",
    "TORCH_COMPILE_DEBUG",
}


def clear_variables() -> None:
    """Remove the variables that would change a result, and name them in the log."""
    prefixes: tuple[str, ...] = PREFIXES
    names: tuple[str, ...] = NAMES
    if not {"RANK", "MASTER_ADDR"} <= os.environ.keys():  # no launcher has started this process
        prefixes += LAUNCHER_PREFIXES
        names += RANKS
    found = [name for name in os.environ if name.startswith(prefixes) or name in names]
    cleared = sorted(set(found) - KEPT)
    for name in cleared:
        del os.environ[name]
    if cleared:
        log(
            f"environment: {', '.join(cleared)} not used: what changes a result stands in "
            "params.yaml"
        )
