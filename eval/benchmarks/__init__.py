"""The benchmarks, a file or a room each."""
