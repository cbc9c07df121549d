"""The benchmarks: MMIE, InterleavedBench, MRAMG-Bench, POPE, MME, SEED-Bench, GenEval, DPG-Bench, FTII-Bench."""
