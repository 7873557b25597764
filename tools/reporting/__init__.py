"""The parts of tools/report.py; tools/overview.py shares its pictures."""
