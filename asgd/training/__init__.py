"""The training program: config to metrics, checkpoints and a last line of JSON."""
