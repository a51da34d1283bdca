"""The parts of train.py that stand alone: flags, batches, checkpoints, the push to the Hub."""
