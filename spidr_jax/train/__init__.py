"""A run: open, restore, loop, save."""
