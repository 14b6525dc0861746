"""The process itself: files, signals, streams, exit codes, and what JAX is told at the start."""
