"""SpidR speech pretraining in JAX."""
