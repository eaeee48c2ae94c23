"""From any folder of audio to a fed accelerator."""
