"""A model from wherever it lies: Orbax or PyTorch files, their names and configs."""
