"""Settings of every test run."""

import os

# Compiling is most of the tests' time, and LLVM's higher levels are most of compiling. Export
# XLA_FLAGS (empty too) to test what the default settings compile.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
