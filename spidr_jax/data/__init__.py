"""From any folder of audio to batches on the device."""
