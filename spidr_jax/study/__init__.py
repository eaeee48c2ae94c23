"""One config under several values and seeds, compared: what an ablation needs."""
