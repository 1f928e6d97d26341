"""Runs compared with each other: read as data frames, selected, put into tables of sweeps, tested for differences."""
