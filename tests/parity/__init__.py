"""keras_vit beside the libraries whose checkpoints it reads: `python -m tests.parity`."""
