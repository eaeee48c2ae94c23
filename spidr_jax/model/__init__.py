"""The network: front end, encoder, heads."""
