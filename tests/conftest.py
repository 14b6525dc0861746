"""Eight simulated CPU devices for every test, set before jax is imported; repeatable properties."""

import atexit
import os
import shutil
import signal
import tempfile

from hypothesis import settings
from jaxtyping import install_import_hook

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

# Started under nohup or in the background, the tests would find these ignored, which the code
# respects.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

# Shapes and types of arguments and results are checked wherever these packages state them.
CHECKED = ["gct_jax.kernels", "gct_jax.corruption", "gct_jax.models"]
SAMPLING = "cascade diffusion_solvers elucidated guidance programs superres token_decoding"
CHECKED += [f"gct_jax.sampling.{name}" for name in SAMPLING.split()]  # settings check themselves
install_import_hook(CHECKED, "runtime_checker.check")

# Tests compile the same tiny programs again and again, which takes far longer than running them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gct_jax_programs_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# The same examples in every run, so a red test is the change's. To look for new ones:
# pytest --hypothesis-profile=default
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_terminal_summary(terminalreporter, config):
    """Name the long tests' command where they were left out."""
    if config.option.markexpr == "not long":
        terminalreporter.write_line(
            "The long tests were left out: python -m pytest -n auto -m long runs them."
        )
