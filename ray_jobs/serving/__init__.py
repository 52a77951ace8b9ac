"""The parts of `magnet serve`."""
