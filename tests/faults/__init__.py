"""Fault injection: real signals, full disks and killed workers on real processes."""
