"""Settings of every test run."""

import os
import signal
import tempfile

# Compiling is most of the tests' time, and LLVM's higher levels are most of compiling. Export
# XLA_FLAGS (empty too) to test what the default settings compile.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

# The same small programs are compiled in many tests and subprocesses; the user's cache is not ours.
_cache = tempfile.TemporaryDirectory(prefix="spidr-tests-xla-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# A shell's background jobs, and what they start, would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
