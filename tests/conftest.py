"""Settings of every test run."""

import os
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

# Compiling is most of the tests' time, and LLVM's optimisations are most of compiling, then XLA's
# emitters of fused loops, which it could do without before jax 0.11. Export XLA_FLAGS (empty too)
# to test what the default settings compile.
LEGACY = " --xla_cpu_use_fusion_emitters=false" if version("jax").startswith("0.10.") else ""
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0" + LEGACY)

# The same small programs are compiled in many tests and subprocesses; the user's cache is not ours.
# Each of pytest-xdist's workers has a folder: JAX would read what another has half written.
_cache = tempfile.TemporaryDirectory(prefix="spidr-tests-xla-")
_folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", _cache.name))
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_folder / os.environ.get("PYTEST_XDIST_WORKER", ""))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# Threads of scikit-learn that wait must not hold a core that other tests use.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Subprocesses of tests in any folder import the helpers that lie here.
_paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _paths))

# A shell's background jobs, and what they start, would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
