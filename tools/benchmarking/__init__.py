"""The parts of tools/benchmark.py: data, measurement, references and one file per family."""
