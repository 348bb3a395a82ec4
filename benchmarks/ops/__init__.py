"""One file per op, named by its stem: real shapes, inputs, bytes, FLOPs, providers."""
